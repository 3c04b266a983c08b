#include "packing.h"

#include <cstring>

#include "mlx/types/half_types.h"

namespace headrace {
namespace {

float scale_at(Scale type, const uint8_t* from, int64_t index) {
  if (type == Scale::f32) {
    float value;
    std::memcpy(&value, from + 4 * index, 4);
    return value;
  }
  if (type == Scale::bf16) {
    mlx::core::bfloat16_t value;
    std::memcpy(&value, from + 2 * index, 2);
    return float(value);
  }
  mlx::core::float16_t value;
  std::memcpy(&value, from + 2 * index, 2);
  return float(value);
}

// The weights of one output in a chunk: `from` has them in order, `to` is the output's place in the
// chunk's first vector.
void pack_chunk(int bits, const uint8_t* from, uint8_t* to) {
  if (bits == 8) {
    for (int vector = 0; vector < 8; ++vector)
      std::memcpy(to + vector * kLine, from + 4 * vector, 4);
    return;
  }
  for (int vector = 0; vector < 4; ++vector, from += 4, to += kLine) {
    // Two neighbours share a byte, the first in its low half.
    for (int i = 0; i < 4; ++i) {
      const int low = from[i / 2] >> (4 * (i % 2)) & 15;
      const int high = from[2 + i / 2] >> (4 * (i % 2)) & 15;
      to[i] = uint8_t(low | high << 4);
    }
  }
}

}  // namespace

void pack_block(const Format& format, const Matrix& matrix, int64_t block, uint8_t* to) {
  const int64_t groups = matrix.inputs / format.group;
  const size_t scale = format.scales_bytes() / kLanes;
  const size_t row_bytes = matrix.inputs * format.bits / 8;
  const size_t chunk_bytes = size_t(kChunk) * format.bits / 8;
  std::memset(to, 0, format.block_bytes(matrix.inputs));
  for (int lane = 0; lane < kLanes && block * kLanes + lane < matrix.outputs; ++lane) {
    const int64_t output = block * kLanes + lane;
    const uint8_t* row = matrix.weights + output * row_bytes;
    uint8_t* at = to;
    for (int64_t group = 0; group < groups; ++group) {
      const size_t index = (output * groups + group) * scale;
      std::memcpy(at + lane * scale, matrix.scales + index, scale);
      std::memcpy(at + format.scales_bytes() + lane * scale, matrix.biases + index, scale);
      at += 2 * format.scales_bytes();
      for (int chunk = 0; chunk < format.group; chunk += kChunk) {
        pack_chunk(format.bits, row, at + 4 * lane);
        row += chunk_bytes;
        at += format.chunk_bytes();
      }
    }
  }
}

void unpack_row(const Format& format, const uint8_t* blocks, int64_t inputs, int64_t output,
                float* to) {
  const int lane = output % kLanes;
  const uint8_t* at = blocks + output / kLanes * format.block_bytes(inputs);
  const int in_vector = format.bits == 4 ? 8 : 4;
  for (int64_t group = 0; group < inputs; group += format.group) {
    const float scale = scale_at(format.scale, at, lane);
    const float bias = scale_at(format.scale, at + format.scales_bytes(), lane);
    at += 2 * format.scales_bytes();
    for (int chunk = 0; chunk < format.group; chunk += kChunk, at += format.chunk_bytes()) {
      for (int i = 0; i < kChunk; ++i) {
        const uint8_t byte = at[i / in_vector * kLine + 4 * lane + i % 4];
        const int weight = format.bits == 8 ? byte : byte >> (i % 8 / 4 * 4) & 15;
        *to++ = scale * float(weight) + bias;
      }
    }
  }
}

const uint8_t* blocks_in(const uint8_t* packed) {
  int64_t begin;
  std::memcpy(&begin, packed, sizeof begin);
  return packed + begin;
}

uint8_t* begin_packed(uint8_t* packed) {
  const auto address = reinterpret_cast<uintptr_t>(packed);
  const int64_t begin = (address + sizeof(int64_t) + kLine - 1) / kLine * kLine - address;
  std::memset(packed, 0, kHeader);
  std::memcpy(packed, &begin, sizeof begin);
  return packed + begin;
}

}  // namespace headrace
