#include "primitives.h"

#include <algorithm>
#include <stdexcept>

#include "dispatch.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/device.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "packing.h"
#include "path.h"
#include "pool.h"

namespace headrace {
namespace {

// Numbers that one thread deals with sooner than another can be asked to help.
constexpr int64_t kAlone = 1 << 15;
// Bytes of rounded rows that stay in a core's cache while the weights pass by.
constexpr int64_t kRowsBytes = 1 << 18;

mx::Stream cpu() { return mx::default_stream(mx::Device::cpu); }

class OnCpu : public mx::Primitive {
 public:
  OnCpu() : Primitive(cpu()) {}
  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("headrace_kernels compute on a CPU alone");
  }
};

template <class T>
T* allocate(mx::array& out) {
  out.set_data(mx::allocator::malloc(out.nbytes()));
  return out.data<T>();
}

bool same(const Layout& a, const Layout& b) {
  return a.format.bits == b.format.bits && a.format.group == b.format.group &&
         a.format.scale == b.format.scale && a.inputs == b.inputs && a.outputs == b.outputs;
}

class Pack : public OnCpu {
 public:
  explicit Pack(const Layout& layout) : layout_(layout) {}
  const char* name() const override { return "HeadracePack"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const Matrix matrix = {inputs[0].data<uint8_t>(), inputs[1].data<uint8_t>(),
                           inputs[2].data<uint8_t>(), layout_.inputs, layout_.outputs};
    auto* packed = allocate<uint8_t>(outputs[0]);
    mx::cpu::get_command_encoder(stream()).dispatch([matrix, packed, layout = layout_] {
      uint8_t* blocks = begin_packed(packed);
      const size_t bytes = layout.format.block_bytes(layout.inputs);
      pool().run(blocks_of(layout.outputs), [&](int block) {
        pack_block(layout.format, matrix, block, blocks + block * bytes);
      });
    });
  }

 private:
  Layout layout_;
};

// Rounds the rows, tile by tile, then has blocks of outputs computed by whoever is free.
void multiply_rows(const Path& path, Product& product, const float* x, uint8_t* scratch) {
  const int64_t rows = product.rows, inputs = product.inputs, chunks = inputs / kChunk;
  auto* rounded = reinterpret_cast<int8_t*>(scratch);
  auto* scales = reinterpret_cast<float*>(scratch + rows * inputs);
  float* sums = scales + rows * chunks;
  const auto round_tile = [&](int tile) {
    const int64_t first = int64_t(tile) * path.tile;
    const int step = std::min<int64_t>(path.tile, rows - first);
    for (int i = 0; i < step; ++i)
      path.round(x + (first + i) * inputs, inputs, step, rounded + first * inputs + 4 * i,
                 scales + first * chunks + i, sums + first * chunks + i);
  };
  const int tiles = (rows + path.tile - 1) / path.tile;
  if (rows * inputs < kAlone) {
    for (int tile = 0; tile < tiles; ++tile) round_tile(tile);
  } else {
    pool().run(tiles, round_tile);
  }

  product.x = rounded;
  product.scales = scales;
  product.sums = sums;
  const int64_t blocks = blocks_of(product.outputs);
  const int64_t work = product.outputs * inputs * rows;
  // A few pieces for each thread, since one may be late; each worth the asking.
  const int64_t wanted = std::min<int64_t>(pool().threads() * 4, work / kAlone);
  const int64_t each = (blocks + std::max<int64_t>(wanted, 1) - 1) / std::max<int64_t>(wanted, 1);
  const int64_t together = std::max<int64_t>(kRowsBytes / (inputs * path.tile), 1) * path.tile;
  pool().run((blocks + each - 1) / each, [&](int piece) {
    const int64_t first = piece * each, last = std::min(first + each, blocks);
    for (int64_t row = 0; row < rows; row += together)
      path.multiply(product, first, last, row, std::min(row + together, rows));
  });
}

class Multiply : public OnCpu {
 public:
  explicit Multiply(const Layout& layout) : layout_(layout) {}
  const char* name() const override { return "HeadraceMultiply"; }
  bool is_equivalent(const Primitive& other) const override {
    return same(layout_, static_cast<const Multiply&>(other).layout_);
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    auto& encoder = mx::cpu::get_command_encoder(stream());
    Product product = {};
    product.format = layout_.format;
    product.inputs = layout_.inputs;
    product.outputs = layout_.outputs;
    product.rows = inputs[0].size() / layout_.inputs;
    product.out = allocate<float>(outputs[0]);
    if (product.rows == 0) return;
    const int64_t bytes = product.rows * (layout_.inputs + layout_.inputs / kChunk * 8);
    mx::array scratch({int(bytes / 4)}, mx::uint32, nullptr, {});
    auto* room = reinterpret_cast<uint8_t*>(allocate<uint32_t>(scratch));
    encoder.add_temporary(scratch);
    const float* x = inputs[0].data<float>();
    const uint8_t* packed = inputs[1].data<uint8_t>();
    encoder.dispatch([product, x, packed, room]() mutable {
      product.weights = blocks_in(packed);
      multiply_rows(path(), product, x, room);
    });
  }

 private:
  Layout layout_;
};

class Take : public OnCpu {
 public:
  explicit Take(const Layout& layout) : layout_(layout) {}
  const char* name() const override { return "HeadraceTake"; }
  bool is_equivalent(const Primitive& other) const override {
    return same(layout_, static_cast<const Take&>(other).layout_);
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const auto* indices = inputs[0].data<uint32_t>();
    const auto* packed = inputs[1].data<uint8_t>();
    float* out = allocate<float>(outputs[0]);
    mx::cpu::get_command_encoder(stream()).dispatch([indices, packed, out, count = inputs[0].size(),
                                                     layout = layout_] {
      for (size_t i = 0; i < count; ++i) {
        // As MLX does, without a look at what lies beyond: no more is promised than memory safety.
        const int64_t row = std::min<int64_t>(indices[i], layout.outputs - 1);
        unpack_row(layout.format, blocks_in(packed), layout.inputs, row, out + i * layout.inputs);
      }
    });
  }

 private:
  Layout layout_;
};

class SwiGlu : public OnCpu {
 public:
  const char* name() const override { return "HeadraceSwiGlu"; }
  bool is_equivalent(const Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const float *gate = inputs[0].data<float>(), *x = inputs[1].data<float>();
    float* out = allocate<float>(outputs[0]);
    mx::cpu::get_command_encoder(stream()).dispatch([gate, x, out, size = outputs[0].size()] {
      constexpr int64_t kPiece = kAlone / 4;
      pool().run((size + kPiece - 1) / kPiece, [&](int piece) {
        const int64_t first = piece * kPiece;
        path().swiglu(gate + first, x + first, out + first,
                      std::min<int64_t>(kPiece, size - first));
      });
    });
  }
};

class RmsNorm : public OnCpu {
 public:
  explicit RmsNorm(float eps) : eps_(eps) {}
  const char* name() const override { return "HeadraceRmsNorm"; }
  bool is_equivalent(const Primitive& other) const override {
    return eps_ == static_cast<const RmsNorm&>(other).eps_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const float *x = inputs[0].data<float>(), *weight = inputs[1].data<float>();
    float* out = allocate<float>(outputs[0]);
    const int64_t size = inputs[0].shape(-1), rows = size ? inputs[0].size() / size : 0;
    mx::cpu::get_command_encoder(stream()).dispatch([x, weight, out, size, rows, eps = eps_] {
      const int64_t each = std::max<int64_t>(kAlone / 2 / std::max<int64_t>(size, 1), 1);
      pool().run((rows + each - 1) / each, [&](int piece) {
        for (int64_t row = piece * each; row < std::min((piece + 1) * each, rows); ++row)
          path().rms_norm(x + row * size, weight, eps, out + row * size, size);
      });
    });
  }

 private:
  float eps_;
};

class Rotate : public OnCpu {
 public:
  Rotate(int turned, bool neighbours) : turned_(turned), neighbours_(neighbours) {}
  const char* name() const override { return "HeadraceRotate"; }
  bool is_equivalent(const Primitive& other) const override {
    const auto& same = static_cast<const Rotate&>(other);
    return turned_ == same.turned_ && neighbours_ == same.neighbours_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const float* x = inputs[0].data<float>();
    const float *cos = inputs[1].data<float>(), *sin = inputs[2].data<float>();
    float* out = allocate<float>(outputs[0]);
    const auto& shape = inputs[0].shape();
    mx::cpu::get_command_encoder(stream()).dispatch(
        [x, cos, sin, out, rows = shape[0], heads = shape[1], tokens = int64_t(shape[2]),
         size = int64_t(shape[3]), turned = turned_, neighbours = neighbours_] {
          const int64_t lines = int64_t(rows) * heads * tokens;
          const int64_t each = std::max<int64_t>(kAlone / 4 / std::max<int64_t>(size, 1), 1);
          pool().run((lines + each - 1) / each, [&](int piece) {
            for (int64_t line = piece * each; line < std::min((piece + 1) * each, lines); ++line) {
              const int64_t angle = (line / tokens / heads * tokens + line % tokens) * size;
              path().rotate(x + line * size, cos + angle, sin + angle, neighbours, turned, size,
                            out + line * size);
            }
          });
        });
  }

 private:
  int turned_;
  bool neighbours_;
};

class Attend : public OnCpu {
 public:
  Attend(float scale, bool padded, bool branched)
      : scale_(scale), padded_(padded), branched_(branched) {}
  const char* name() const override { return "HeadraceAttend"; }
  bool is_equivalent(const Primitive& other) const override {
    const auto& same = static_cast<const Attend&>(other);
    return scale_ == same.scale_ && padded_ == same.padded_ && branched_ == same.branched_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const auto &queries = inputs[0], &keys = inputs[1], &values = inputs[2];
    Attention a = {};
    a.rows = queries.shape(0), a.heads = queries.shape(1), a.tokens = queries.shape(2);
    a.key_heads = keys.shape(1), a.length = keys.shape(2);
    a.size = keys.shape(3), a.value_size = values.shape(3);
    auto& encoder = mx::cpu::get_command_encoder(stream());
    a.queries = heads(queries, encoder), a.keys = heads(keys, encoder);
    a.values = heads(values, encoder);
    if (padded_) a.padding = inputs[3].data<float>();
    if (branched_) a.recent = inputs.back().data<float>();
    a.scale = scale_;
    a.out = allocate<float>(outputs[0]);
    encoder.dispatch([a] {
      const int64_t pieces = (a.queries_each() + kQueries - 1) / kQueries;
      pool().run(a.rows * a.key_heads * pieces, [&](int task) {
        static thread_local std::vector<float> scores;
        scores.resize(kQueries * ((a.length + 15) / 16 * 16));
        const int64_t first = task % pieces * kQueries, head = task / pieces;
        path().attend(a, head / a.key_heads, head % a.key_heads, first,
                      std::min(first + kQueries, a.queries_each()), scores.data());
      });
    });
  }

 private:
  // As it lies in memory, or a copy of it where its last axis is in pieces.
  static Heads heads(const mx::array& x, mx::cpu::CommandEncoder& encoder) {
    const Heads from = {x.data<float>(), {x.strides(0), x.strides(1), x.strides(2)}};
    const int64_t apart = x.strides(3), size = x.shape(3), tokens = x.shape(2), many = x.shape(1);
    if (apart == 1) return from;
    mx::array copy(x.shape(), mx::float32, nullptr, {});
    float* to = allocate<float>(copy);
    encoder.add_temporary(copy);
    encoder.dispatch([from, apart, size, tokens, many, to, count = int64_t(x.size())] {
      for (int64_t i = 0; i < count; ++i) {
        const int64_t line = i / size, token = line % tokens, row = line / tokens;
        to[i] = from.at(row / many, row % many, token)[i % size * apart];
      }
    });
    return {to, {many * tokens * size, tokens * size, size}};
  }

  float scale_;
  bool padded_, branched_;
};

mx::array plain(const mx::array& x, mx::Dtype type) {
  return mx::contiguous(mx::astype(x, type, cpu()), false, cpu());
}

void check(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument("headrace_kernels: " + message);
}

void check_packed(const mx::array& packed, const Layout& layout) {
  check(packed.dtype() == mx::uint8 && packed.ndim() == 1 &&
            int64_t(packed.size()) == packed_bytes(layout.format, layout.inputs, layout.outputs),
        "this is no matrix packed in this layout");
}

// As keys and values lie in a cache: each in one piece, whatever is between them.
void check_heads(const mx::array& x, const std::string& name) {
  check(x.ndim() == 4 && x.dtype() == mx::float32,
        name + " is [rows, heads, tokens, size], float32");
  check(x.shape(3) % 16 == 0, name + " has a multiple of 16 numbers in a head");
}

}  // namespace

Layout layout_of(const mx::array& weight, const mx::array& scales, const mx::array& biases,
                 int group_size, int bits) {
  check(bits == 4 || bits == 8, "bits is 4 or 8, not " + std::to_string(bits));
  check(group_size == 32 || group_size == 64 || group_size == 128,
        "group_size is 32, 64 or 128, not " + std::to_string(group_size));
  check(weight.ndim() == 2 && weight.dtype() == mx::uint32, "weight is a matrix of uint32");
  const auto type = scales.dtype();
  check(type == mx::float32 || type == mx::float16 || type == mx::bfloat16,
        "scales are float32, float16 or bfloat16");
  check(biases.dtype() == type && biases.shape() == scales.shape(),
        "biases are of the type and shape of scales");
  const int64_t outputs = weight.shape(0), inputs = int64_t(weight.shape(1)) * 32 / bits;
  check(outputs > 0 && inputs > 0 && inputs % group_size == 0,
        "inputs are a multiple of group_size");
  check(scales.shape() == mx::Shape{int(outputs), int(inputs / group_size)},
        "scales are [outputs, inputs / group_size]");
  const Scale scale = type == mx::float32   ? Scale::f32
                      : type == mx::float16 ? Scale::f16
                                            : Scale::bf16;
  const Layout layout = {{bits, group_size, scale}, inputs, outputs};
  check(packed_bytes(layout.format, inputs, outputs) < int64_t(1) << 31,
        "a matrix takes less than 2 GiB");
  return layout;
}

mx::array pack(const mx::array& weight, const mx::array& scales, const mx::array& biases,
               const Layout& layout) {
  check(same(layout, layout_of(weight, scales, biases, layout.format.group, layout.format.bits)),
        "this matrix is of another layout");
  const auto bytes = packed_bytes(layout.format, layout.inputs, layout.outputs);
  return mx::array({int(bytes)}, mx::uint8, std::make_shared<Pack>(layout),
                   {plain(weight, weight.dtype()), plain(scales, scales.dtype()),
                    plain(biases, biases.dtype())});
}

mx::array multiply(const mx::array& x, const mx::array& packed, const Layout& layout) {
  check_packed(packed, layout);
  check(x.ndim() > 0 && x.shape(-1) == layout.inputs,
        "x has " + std::to_string(layout.inputs) + " numbers in its last axis");
  check(mx::issubdtype(x.dtype(), mx::floating) && x.dtype() != mx::float64,
        "x is float32, float16 or bfloat16");
  auto shape = x.shape();
  shape.back() = layout.outputs;
  mx::array out(shape, mx::float32, std::make_shared<Multiply>(layout),
                {plain(x, mx::float32), packed});
  return mx::astype(out, x.dtype(), cpu());
}

mx::array take(const mx::array& indices, const mx::array& packed, const Layout& layout) {
  check_packed(packed, layout);
  check(mx::issubdtype(indices.dtype(), mx::integer), "indices are whole numbers");
  auto shape = indices.shape();
  shape.push_back(layout.inputs);
  return mx::array(shape, mx::float32, std::make_shared<Take>(layout),
                   {plain(indices, mx::uint32), packed});
}

mx::array swiglu(const mx::array& gate, const mx::array& x) {
  check(gate.shape() == x.shape(), "gate and x are of one shape");
  check(gate.dtype() == mx::float32 && x.dtype() == mx::float32, "gate and x are float32");
  return mx::array(x.shape(), mx::float32, std::make_shared<SwiGlu>(),
                   {plain(gate, mx::float32), plain(x, mx::float32)});
}

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps) {
  check(x.dtype() == mx::float32 && weight.dtype() == mx::float32, "x and weight are float32");
  check(x.ndim() > 0 && weight.shape() == mx::Shape{x.shape(-1)},
        "weight has a number for each in the last axis of x");
  return mx::array(x.shape(), mx::float32, std::make_shared<RmsNorm>(eps),
                   {plain(x, mx::float32), plain(weight, mx::float32)});
}

mx::array rotate(const mx::array& x, const mx::array& cos, const mx::array& sin, int turned,
                 bool neighbours) {
  check(x.ndim() == 4, "x is [rows, heads, tokens, size]");
  const mx::Shape angles = {x.shape(0), 1, x.shape(2), x.shape(3)};
  check(cos.shape() == angles && sin.shape() == angles, "cos and sin are [rows, 1, tokens, size]");
  check(x.dtype() == mx::float32 && cos.dtype() == mx::float32 && sin.dtype() == mx::float32,
        "x, cos and sin are float32");
  check(0 <= turned && turned <= x.shape(3) && turned % 2 == 0, "whole pairs of a head are turned");
  return mx::array(x.shape(), mx::float32, std::make_shared<Rotate>(turned, neighbours),
                   {plain(x, mx::float32), plain(cos, mx::float32), plain(sin, mx::float32)});
}

mx::array attend(const mx::array& queries, const mx::array& keys, const mx::array& values,
                 float scale, const std::optional<mx::array>& padding,
                 const std::optional<mx::array>& recent) {
  check_heads(queries, "queries");
  check_heads(keys, "keys");
  check_heads(values, "values");
  const int rows = queries.shape(0), tokens = queries.shape(2), length = keys.shape(2);
  check(keys.shape(0) == rows && values.shape(0) == rows,
        "queries, keys and values have as many rows");
  check(keys.shape(3) == queries.shape(3), "queries and keys are of one size");
  check(values.shape(1) == keys.shape(1) && values.shape(2) == length, "each key has a value");
  check(keys.shape(1) > 0 && queries.shape(1) % keys.shape(1) == 0,
        "queries have a multiple of the heads of keys");
  check(0 < tokens && tokens <= length, "queries are of the last tokens");
  std::vector<mx::array> inputs = {queries, keys, values};
  if (padding) {
    check(padding->size() == size_t(rows) * length, "padding is [rows, keys]");
    inputs.push_back(plain(*padding, mx::float32));
  }
  if (recent) {
    check(recent->shape() == mx::Shape{tokens, tokens}, "recent is [queries, queries]");
    inputs.push_back(plain(*recent, mx::float32));
  }
  auto shape = queries.shape();
  shape.back() = values.shape(3);
  return mx::array(shape, mx::float32,
                   std::make_shared<Attend>(scale, padding.has_value(), recent.has_value()),
                   inputs);
}

}  // namespace headrace
