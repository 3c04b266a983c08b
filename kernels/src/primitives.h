// The kernels as functions of MLX's arrays: lazy, and computed on the CPU's stream.
#pragma once

#include <optional>
#include <string>

#include "format.h"
#include "mlx/array.h"

namespace headrace {

namespace mx = mlx::core;

// What packed matrices are, of which there is one or several alike; the array that holds them knows
// only bytes.
struct Layout {
  Format format;
  int64_t inputs;
  int64_t outputs;
  int64_t matrices;
};

// Of a matrix in MLX's affine quantisation, `weight` [outputs, inputs * bits / 32] of uint32, or of
// several, [matrices, outputs, inputs * bits / 32].
// Throws std::invalid_argument for what the kernels cannot compute.
Layout layout_of(const mx::array& weight, const mx::array& scales, const mx::array& biases,
                 int group_size, int bits);

// The matrices packed: bytes, in lines of 64.
mx::array pack(const mx::array& weight, const mx::array& scales, const mx::array& biases,
               const Layout& layout);

// x [..., inputs] times the matrix, [..., outputs], in the type of x.
mx::array multiply(const mx::array& x, const mx::array& packed, const Layout& layout);

// Rows of x [..., inputs], each times the matrix of its index, [..., outputs], in the type of x.
// Indices and rows are broadcast to one shape.
mx::array gather_multiply(const mx::array& x, const mx::array& indices, const mx::array& packed,
                          const Layout& layout);

// Rows of the matrices by their numbers, [..., inputs] of float32. Of several they go on.
mx::array take(const mx::array& indices, const mx::array& packed, const Layout& layout);

// silu(gate) * x, of float32.
mx::array swiglu(const mx::array& gate, const mx::array& x);

// 2 to the power of what each number is below the largest of its row, [rows, numbers], times the
// row's factor, [rows, 1]; 2**-126 at least; of float32.
mx::array weigh(const mx::array& x, const mx::array& factors);

// x times the share of a normal distribution below x, or what stands for it, by tanh; of float32.
mx::array gelu(const mx::array& x, bool by_tanh);

// x / sqrt(mean(x * x) + eps) * weight over the last axis, of float32.
mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps);

// Rotary embedding of x, [rows, heads, tokens, size] of float32. `cos` and `sin`, of as many rows,
// tokens and numbers, are for all heads. Of a head the first `turned` numbers are turned, in pairs
// of neighbours or of one from the first half and one from the second.
mx::array rotate(const mx::array& x, const mx::array& cos, const mx::array& sin, int turned,
                 bool neighbours);

// x, [..., size] of float32, as [..., size + 2] of int16; see `Attention` in path.h.
mx::array round_heads(const mx::array& x);

// Attention as `Attention` in path.h describes it, of arrays [rows, heads, tokens, size] of
// float32; keys and values may be as `round_heads` gives them.
mx::array attend(const mx::array& queries, const mx::array& keys, const mx::array& values,
                 float scale, const std::optional<mx::array>& padding,
                 const std::optional<mx::array>& recent);

}  // namespace headrace
