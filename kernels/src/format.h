// How quantised weights lie in memory, so that every path reads them in order.
//
// Sixteen outputs make a block. A block has its groups of inputs one after another, each with the
// scales of its sixteen outputs, their biases, and its weights in chunks of 32 inputs. A vector of
// a chunk has four bytes for each output: with 8 bits those are four neighbouring inputs, with 4
// bits eight, the first four in the low halves. So a vector times four inputs, the same for all its
// outputs, is one step of all sixteen sums, and none has to be added up across a vector.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headrace {

constexpr int kLanes = 16;  // Outputs in a block.
constexpr int kChunk = 32;  // Inputs that are rounded to 8 bits by one scale.
constexpr int kLine = 64;   // Bytes of a cache line, and of a block's vectors.
// Before the first block: where it begins, on a line of the cache, as an int64.
constexpr int kHeader = 2 * kLine;

enum class Scale : uint8_t { f32, f16, bf16 };

struct Format {
  int bits;   // 4 or 8.
  int group;  // Inputs with a scale and a bias: 32, 64 or 128.
  Scale scale;

  size_t scales_bytes() const { return kLanes * (scale == Scale::f32 ? 4 : 2); }
  size_t chunk_bytes() const { return size_t(kLanes) * kChunk * bits / 8; }
  size_t group_bytes() const { return 2 * scales_bytes() + group / kChunk * chunk_bytes(); }
  size_t block_bytes(int64_t inputs) const { return inputs / group * group_bytes(); }
};

inline int64_t blocks_of(int64_t outputs) { return (outputs + kLanes - 1) / kLanes; }

}  // namespace headrace
