// Products of rows, rounded to 8 bits, and packed weights; see path.h for what is where.
//
// A row is rounded chunk by chunk: x is about scale * q with whole numbers q from -127 to 127. A
// weight is s * w + b with a whole number w. So a chunk adds
//
//     s * scale * sum(w * q) + b * scale * sum(q)
//
// to an output: the exact product of the weights and the rounded row, but for the rounding of
// float32. The sum over w * q is one of whole numbers, and the chunks are added one after another
// in each output by itself. So a result depends neither on the rows beside it, nor on the threads,
// nor on the instructions.
#pragma once

#include <utility>

#include "path.h"
#include "vectors.h"

namespace headrace {
namespace {

void round_row(const float* x, int64_t inputs, int step, int8_t* to, float* scales, float* sums) {
  typedef int8_t Bytes __attribute__((vector_size(kWidth)));
  for (int64_t at = 0; at < inputs; at += kChunk) {
    I sizes = {};
    for (int i = 0; i < kChunk; i += kWidth) sizes = larger(sizes, load<F>(x + at + i));
    // 127 divided by what is smaller would be infinite.
    const Rounding rounding(greatest(sizes), 127.0f, 1e-35f);
    I total = {};
    int8_t bytes[kChunk];
    for (int i = 0; i < kChunk; i += kWidth) {
      const I whole = rounding.whole(load<F>(x + at + i));
      total += whole;
      store(bytes + i, convert<Bytes>(whole));
    }
    *scales = rounding.scale;
    *sums = rounding.scale * float(sum(total));
    for (int word = 0; word < kChunk / 4; ++word, to += 4 * step)
      std::memcpy(to, bytes + 4 * word, 4);
    scales += step;
    sums += step;
  }
}

// One block for a tile of rows. `Isa` has the width of its vectors, how many of them it computes
// together, and sums of whole numbers `Sums`, which `dot` adds to and `total` gives. `dot` takes
// four weights of each output, and of the tile's rows, which have four inputs each, one after
// another, which row it is for and how many there are.
template <class Isa, int Bits, Scale S, int Rows>
void multiply_tile(const Format& format, int64_t inputs, const uint8_t* block, const int8_t* x,
                   const float* scales, const float* sums, float* out, int64_t outputs, int live) {
  constexpr int kTogether = Isa::together;
  using F = typename Vector<Isa::width>::F;
  using I = typename Vector<Isa::width>::I;
  const size_t scales_bytes = format.scales_bytes();
  for (int first = 0; first < live; first += Isa::width * kTogether) {
    F result[Rows][kTogether] = {};
    const uint8_t* at = block;
    const int8_t* words = x;
    const float *scale = scales, *sum = sums;
    for (int64_t group = 0; group < inputs; group += format.group) {
      F s[kTogether], b[kTogether];
      for (int i = 0; i < kTogether; ++i) {
        s[i] = load_scales<Isa::width, S>(at, first + i * Isa::width);
        b[i] = load_scales<Isa::width, S>(at + scales_bytes, first + i * Isa::width);
      }
      at += 2 * scales_bytes;
      for (int chunk = 0; chunk < format.group; chunk += kChunk) {
        typename Isa::template Sums<Bits> sums_of[Rows][kTogether] = {};
        for (int vector = 0; vector < Bits; ++vector) {
          I w[kTogether];
          for (int i = 0; i < kTogether; ++i)
            w[i] = load<I>(at + vector * kLine + 4 * (first + i * Isa::width));
          const auto add = [&](auto&& part) __attribute__((always_inline)) {
#pragma GCC unroll 16
            for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 4
              for (int i = 0; i < kTogether; ++i) sums_of[row][i].dot(part(w[i]), words, row, Rows);
            words += 4 * Rows;
          };
          if constexpr (Bits == 4) {
            add([](I all) { return all & 0x0f0f0f0f; });
            add([](I all) { return (all >> 4) & 0x0f0f0f0f; });
          } else {
            add([](I all) { return all; });
          }
        }
        at += Bits * kLine;
#pragma GCC unroll 16
        for (int row = 0; row < Rows; ++row)
#pragma GCC unroll 4
          for (int i = 0; i < kTogether; ++i) {
            result[row][i] += convert<F>(sums_of[row][i].total()) * scale[row] * s[i];
            result[row][i] += b[i] * sum[row];
          }
        scale += Rows;
        sum += Rows;
      }
    }
    for (int row = 0; row < Rows; ++row)
      for (int i = 0; i < kTogether; ++i) {
        const int output = first + i * Isa::width, left = live - output;
        if (left >= Isa::width)
          store(out + row * outputs + output, result[row][i]);
        else if (left > 0)
          std::memcpy(out + row * outputs + output, &result[row][i], 4 * left);
      }
  }
}

template <class Isa, int Bits, Scale S, int... Less>
void multiply_blocks(const Product& p, int64_t block, int64_t end_block, int64_t row,
                     int64_t end_row, std::integer_sequence<int, Less...>) {
  using Tile = decltype(&multiply_tile<Isa, Bits, S, 1>);
  static constexpr Tile kTiles[] = {&multiply_tile<Isa, Bits, S, Less + 1>...};
  const size_t bytes = p.format.block_bytes(p.inputs);
  for (; block < end_block; ++block) {
    const int64_t output = block * kLanes;
    const int live = p.outputs - output < kLanes ? p.outputs - output : kLanes;
    for (int64_t at = row; at < end_row; at += Isa::tile) {
      const int rows = p.rows - at < Isa::tile ? p.rows - at : Isa::tile;
      const int64_t chunks = at * (p.inputs / kChunk);
      kTiles[rows - 1](p.format, p.inputs, p.weights + block * bytes, p.x + at * p.inputs,
                       p.scales + chunks, p.sums + chunks, p.out + at * p.outputs + output,
                       p.outputs, live);
    }
  }
}

template <class Isa>
void multiply(const Product& p, int64_t block, int64_t end_block, int64_t row, int64_t end_row) {
  const auto run = [&]<int Bits>() {
    constexpr std::make_integer_sequence<int, Isa::tile> tiles;
    switch (p.format.scale) {
      case Scale::f32:
        return multiply_blocks<Isa, Bits, Scale::f32>(p, block, end_block, row, end_row, tiles);
      case Scale::f16:
        return multiply_blocks<Isa, Bits, Scale::f16>(p, block, end_block, row, end_row, tiles);
      case Scale::bf16:
        return multiply_blocks<Isa, Bits, Scale::bf16>(p, block, end_block, row, end_row, tiles);
    }
  };
  p.format.bits == 4 ? run.template operator()<4>() : run.template operator()<8>();
}

}  // namespace
}  // namespace headrace
