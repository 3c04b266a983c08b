// Matrices: packed, multiplied with, looked up.
#include <algorithm>
#include <memory>

#include "dispatch.h"
#include "mlx/utils.h"
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
         a.format.scale == b.format.scale && a.inputs == b.inputs && a.outputs == b.outputs &&
         a.matrices == b.matrices;
}

size_t matrix_bytes(const Layout& layout) {
  return blocks_of(layout.outputs) * layout.format.block_bytes(layout.inputs);
}

class Pack : public OnCpu {
 public:
  explicit Pack(const Layout& layout) : layout_(layout) {}
  const char* name() const override { return "HeadracePack"; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const Matrix first = {inputs[0].data<uint8_t>(), inputs[1].data<uint8_t>(),
                          inputs[2].data<uint8_t>(), layout_.inputs, layout_.outputs};
    const size_t weights = inputs[0].nbytes() / layout_.matrices;
    const size_t scales = inputs[1].nbytes() / layout_.matrices;
    auto* packed = allocate<uint8_t>(outputs[0]);
    dispatch([first, weights, scales, packed, layout = layout_] {
      uint8_t* to = begin_packed(packed);
      const size_t bytes = layout.format.block_bytes(layout.inputs);
      const int64_t blocks = blocks_of(layout.outputs);
      pool().run(blocks * layout.matrices, [&](int task) {
        Matrix matrix = first;
        const int64_t number = task / blocks;
        matrix.weights += number * weights;
        matrix.scales += number * scales;
        matrix.biases += number * scales;
        pack_block(layout.format, matrix, task % blocks, to + task * bytes);
      });
    });
  }

 private:
  Layout layout_;
};

// Neighbouring rows that are multiplied with one matrix.
struct Part {
  const uint8_t* weights;
  int64_t row, end_row;
};

// Rounds the rows, tile by tile, then has blocks of outputs computed by whoever is free. No tile is
// of two parts. `row_at` gives where a row is; `done`, called with rows and outputs, may take these
// elsewhere.
template <class RowAt, class Done>
void multiply_parts(const Path& path, Product& product, const std::vector<Part>& parts,
                    const RowAt& row_at, const Done& done, uint8_t* scratch) {
  const int64_t rows = product.rows, inputs = product.inputs, chunks = inputs / kChunk;
  auto* rounded = reinterpret_cast<int8_t*>(scratch);
  auto* scales = reinterpret_cast<float*>(scratch + rows * inputs);
  float* sums = scales + rows * chunks;
  struct Tile {
    int64_t first;
    int rows;
  };
  std::vector<Tile> tiles;
  for (const Part& part : parts)
    for (int64_t row = part.row; row < part.end_row; row += path.tile)
      tiles.push_back({row, int(std::min<int64_t>(path.tile, part.end_row - row))});
  const auto round_tile = [&](int number) {
    const auto [first, step] = tiles[number];
    for (int i = 0; i < step; ++i)
      path.round(row_at(first + i), inputs, step, rounded + first * inputs + 4 * i,
                 scales + first * chunks + i, sums + first * chunks + i);
  };
  if (rows * inputs < kAlone) {
    for (size_t tile = 0; tile < tiles.size(); ++tile) round_tile(tile);
  } else {
    pool().run(tiles.size(), round_tile);
  }

  const int64_t blocks = blocks_of(product.outputs);
  const int64_t work = product.outputs * inputs * rows;
  // A few pieces for each thread, since one may be late; each worth the asking.
  const int64_t wanted = std::min<int64_t>(pool().threads() * 4, work / kAlone);
  struct Piece {
    const Part* part;
    int64_t first, last;
  };
  std::vector<Piece> pieces;
  for (const Part& part : parts) {
    const int64_t mine = std::max<int64_t>(wanted * (part.end_row - part.row) / rows, 1);
    const int64_t each = (blocks + mine - 1) / mine;
    for (int64_t first = 0; first < blocks; first += each)
      pieces.push_back({&part, first, std::min(first + each, blocks)});
  }
  const int64_t together = std::max<int64_t>(kRowsBytes / (inputs * path.tile), 1) * path.tile;
  const auto multiply_piece = [&](int number) {
    const auto [part, first, last] = pieces[number];
    Product mine = product;
    mine.weights = part->weights;
    mine.rows = part->end_row - part->row;
    mine.x = rounded + part->row * inputs;
    mine.scales = scales + part->row * chunks;
    mine.sums = sums + part->row * chunks;
    mine.out = product.out + part->row * product.outputs;
    for (int64_t row = 0; row < mine.rows; row += together)
      path.multiply(mine, first, last, row, std::min(row + together, mine.rows));
    done(*part, first * kLanes, std::min(last * kLanes, product.outputs));
  };
  if (wanted <= 1) {
    for (size_t piece = 0; piece < pieces.size(); ++piece) multiply_piece(piece);
  } else {
    pool().run(pieces.size(), multiply_piece);
  }
}

// Bytes that so many rows take as `multiply_parts` rounds them.
int64_t rounded_bytes(const Layout& layout, int64_t rows) {
  return rows * (layout.inputs + layout.inputs / kChunk * 8);
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
    auto* room =
        reinterpret_cast<uint8_t*>(scratch<uint32_t>(rounded_bytes(layout_, product.rows) / 4));
    const float* x = in_order(inputs[0]);
    const uint8_t* packed = inputs[1].data<uint8_t>();
    dispatch([product, x, packed, room]() mutable {
      multiply_parts(
          path(), product, {{blocks_in(packed), 0, product.rows}},
          [&](int64_t row) { return x + row * product.inputs; },
          [](const Part&, int64_t, int64_t) {}, room);
    });
  }

 private:
  Layout layout_;
};

// The rows in the order of their matrices, and where those of one end.
struct Order {
  std::vector<int64_t> rows;
  std::vector<Part> parts;
  bool as_given = true;  // Whether that is the order they are in.
};

Order in_order_of_matrices(const Layout& layout, const uint32_t* chosen, int64_t rows,
                           const uint8_t* blocks) {
  // As MLX does, without a look at what lies beyond: no more is promised than memory safety.
  const auto number = [&](int64_t row) {
    return std::min<int64_t>(chosen[row], layout.matrices - 1);
  };
  std::vector<int64_t> ends(layout.matrices + 1);
  for (int64_t row = 0; row < rows; ++row) ++ends[number(row) + 1];
  Order order;
  for (int64_t matrix = 0; matrix < layout.matrices; ++matrix) {
    const int64_t first = ends[matrix];
    ends[matrix + 1] += first;
    if (first < ends[matrix + 1])
      order.parts.push_back({blocks + matrix * matrix_bytes(layout), first, ends[matrix + 1]});
  }
  order.rows.resize(rows);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t place = ends[number(row)]++;
    order.rows[place] = row;
    order.as_given &= place == row;
  }
  return order;
}

class GatherMultiply : public OnCpu {
 public:
  explicit GatherMultiply(const Layout& layout) : layout_(layout) {}
  const char* name() const override { return "HeadraceGatherMultiply"; }
  bool is_equivalent(const Primitive& other) const override {
    return same(layout_, static_cast<const GatherMultiply&>(other).layout_);
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    Product product = {};
    product.format = layout_.format;
    product.inputs = layout_.inputs;
    product.outputs = layout_.outputs;
    product.rows = inputs[1].size();
    float* out = allocate<float>(outputs[0]);
    if (product.rows == 0) return;
    auto* room =
        reinterpret_cast<uint8_t*>(scratch<uint32_t>(rounded_bytes(layout_, product.rows) / 4));
    // A row may be there for several matrices, without a copy.
    auto strides = inputs[0].strides();
    const float* x = inputs[0].data<float>();
    if (strides.back() != 1) {
      x = in_order(inputs[0]);
      int64_t step = 1;
      for (int axis = inputs[0].ndim() - 1; axis >= 0; step *= inputs[0].shape(axis), --axis)
        strides[axis] = step;
    }
    dispatch([product, x, out, room, strides, shape = inputs[0].shape(), layout = layout_,
              chosen = inputs[1].data<uint32_t>(), packed = inputs[2].data<uint8_t>()]() mutable {
      const Order order = in_order_of_matrices(layout, chosen, product.rows, blocks_in(packed));
      std::unique_ptr<float[]> sorted;
      if (!order.as_given)
        sorted = std::make_unique_for_overwrite<float[]>(product.rows * product.outputs);
      product.out = order.as_given ? out : sorted.get();
      multiply_parts(
          path(), product, order.parts,
          [&](int64_t row) {
            int64_t rest = order.rows[row], at = 0;
            for (int axis = int(shape.size()) - 2; axis >= 0; rest /= shape[axis], --axis)
              at += rest % shape[axis] * strides[axis];
            return x + at;
          },
          [&](const Part& part, int64_t first, int64_t last) {
            if (order.as_given) return;
            for (int64_t row = part.row; row < part.end_row; ++row)
              std::copy_n(&sorted[row * product.outputs + first], last - first,
                          out + order.rows[row] * product.outputs + first);
          },
          room);
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
      run_in_pieces(count, layout.inputs, kAlone / 4, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) {
          // As MLX does, without a look at what lies beyond: memory safety alone is promised.
          const int64_t row = std::min<int64_t>(indices[i], layout.matrices * layout.outputs - 1);
          const uint8_t* blocks = blocks_in(packed) + row / layout.outputs * matrix_bytes(layout);
          unpack_row(layout.format, blocks, layout.inputs, row % layout.outputs,
                     out + i * layout.inputs);
        }
      });
    });
  }

 private:
  Layout layout_;
};

mx::array plain(const mx::array& x, mx::Dtype type) {
  return mx::contiguous(mx::astype(x, type, cpu()), false, cpu());
}

// The bytes of packed matrices: a header, blocks, and room to have these begin on a line.
int64_t packed_bytes(const Layout& layout) {
  return kHeader + layout.matrices * int64_t(matrix_bytes(layout));
}

void check_packed(const mx::array& packed, const Layout& layout) {
  check(packed.dtype() == mx::uint8 && packed.ndim() == 2 &&
            int64_t(packed.size()) == packed_bytes(layout),
        "this is no matrix packed in this layout");
}

void check_rows(const mx::array& x, const Layout& layout) {
  check(x.ndim() > 0 && x.shape(-1) == layout.inputs,
        "x has " + std::to_string(layout.inputs) + " numbers in its last axis");
  check(mx::issubdtype(x.dtype(), mx::floating) && x.dtype() != mx::float64,
        "x is float32, float16 or bfloat16");
}

}  // namespace

Layout layout_of(const mx::array& weight, const mx::array& scales, const mx::array& biases,
                 int group_size, int bits) {
  check(bits == 4 || bits == 8, "bits is 4 or 8, not " + std::to_string(bits));
  check(group_size == 32 || group_size == 64 || group_size == 128,
        "group_size is 32, 64 or 128, not " + std::to_string(group_size));
  check((weight.ndim() == 2 || weight.ndim() == 3) && weight.dtype() == mx::uint32,
        "weight is a matrix of uint32, or several");
  const auto type = scales.dtype();
  check(type == mx::float32 || type == mx::float16 || type == mx::bfloat16,
        "scales are float32, float16 or bfloat16");
  check(biases.dtype() == type && biases.shape() == scales.shape(),
        "biases are of the type and shape of scales");
  const int64_t matrices = weight.ndim() == 3 ? weight.shape(0) : 1;
  const int64_t outputs = weight.shape(-2), inputs = int64_t(weight.shape(-1)) * 32 / bits;
  check(matrices > 0 && outputs > 0 && inputs > 0 && inputs % group_size == 0,
        "inputs are a multiple of group_size");
  auto groups = weight.shape();
  groups.back() = inputs / group_size;
  check(scales.shape() == groups, "scales are [outputs, inputs / group_size]");
  const Scale scale = type == mx::float32   ? Scale::f32
                      : type == mx::float16 ? Scale::f16
                                            : Scale::bf16;
  const Layout layout = {{bits, group_size, scale}, inputs, outputs, matrices};
  return layout;
}

mx::array pack(const mx::array& weight, const mx::array& scales, const mx::array& biases,
               const Layout& layout) {
  check(same(layout, layout_of(weight, scales, biases, layout.format.group, layout.format.bits)),
        "this matrix is of another layout");
  // In lines, since an axis of MLX's is no longer than 2 GiB.
  const auto lines = packed_bytes(layout) / kLine;
  return mx::array({int(lines), kLine}, mx::uint8, std::make_shared<Pack>(layout),
                   {plain(weight, weight.dtype()), plain(scales, scales.dtype()),
                    plain(biases, biases.dtype())});
}

mx::array multiply(const mx::array& x, const mx::array& packed, const Layout& layout) {
  check_packed(packed, layout);
  check(layout.matrices == 1, "multiply takes one matrix; gather_multiply takes several");
  check_rows(x, layout);
  auto shape = x.shape();
  shape.back() = layout.outputs;
  mx::array out(shape, mx::float32, std::make_shared<Multiply>(layout),
                {mx::astype(x, mx::float32, cpu()), packed});
  return mx::astype(out, x.dtype(), cpu());
}

mx::array gather_multiply(const mx::array& x, const mx::array& indices, const mx::array& packed,
                          const Layout& layout) {
  check_packed(packed, layout);
  check_rows(x, layout);
  check(mx::issubdtype(indices.dtype(), mx::integer), "indices are whole numbers");
  auto shape = x.shape();
  shape.pop_back();
  shape = mx::broadcast_shapes(shape, indices.shape());
  const auto chosen = mx::broadcast_to(indices, shape, cpu());
  shape.push_back(layout.inputs);
  const auto rows = mx::broadcast_to(mx::astype(x, mx::float32, cpu()), shape, cpu());
  shape.back() = layout.outputs;
  mx::array out(shape, mx::float32, std::make_shared<GatherMultiply>(layout),
                {rows, plain(chosen, mx::uint32), packed});
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
