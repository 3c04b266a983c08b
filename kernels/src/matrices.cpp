// Matrices: packed, multiplied with, looked up.
#include <algorithm>

#include "dispatch.h"
#include "packing.h"
#include "path.h"
#include "pool.h"
#include "primitive.h"
#include "primitives.h"

namespace headrace {
namespace {

// Bytes of rounded rows that stay in a core's cache while the weights pass by.
constexpr int64_t kRowsBytes = 1 << 18;

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
    dispatch([matrix, packed, layout = layout_] {
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
    Product product = {};
    product.format = layout_.format;
    product.inputs = layout_.inputs;
    product.outputs = layout_.outputs;
    product.rows = inputs[0].size() / layout_.inputs;
    product.out = allocate<float>(outputs[0]);
    if (product.rows == 0) return;
    const int64_t bytes = product.rows * (layout_.inputs + layout_.inputs / kChunk * 8);
    auto* room = reinterpret_cast<uint8_t*>(scratch<uint32_t>(bytes / 4));
    const float* x = in_order(inputs[0]);
    const uint8_t* packed = inputs[1].data<uint8_t>();
    dispatch([product, x, packed, room]() mutable {
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
    dispatch([indices, packed, out, count = inputs[0].size(), layout = layout_] {
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

mx::array plain(const mx::array& x, mx::Dtype type) {
  return mx::contiguous(mx::astype(x, type, cpu()), false, cpu());
}

void check_packed(const mx::array& packed, const Layout& layout) {
  check(packed.dtype() == mx::uint8 && packed.ndim() == 2 &&
            int64_t(packed.size()) == packed_bytes(layout.format, layout.inputs, layout.outputs),
        "this is no matrix packed in this layout");
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
  return layout;
}

mx::array pack(const mx::array& weight, const mx::array& scales, const mx::array& biases,
               const Layout& layout) {
  check(same(layout, layout_of(weight, scales, biases, layout.format.group, layout.format.bits)),
        "this matrix is of another layout");
  // In lines, since an axis of MLX's is no longer than 2 GiB.
  const auto lines = packed_bytes(layout.format, layout.inputs, layout.outputs) / kLine;
  return mx::array({int(lines), kLine}, mx::uint8, std::make_shared<Pack>(layout),
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
                {mx::astype(x, mx::float32, cpu()), packed});
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

}  // namespace headrace
