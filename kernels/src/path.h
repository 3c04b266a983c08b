// What is computed by other instructions on other CPUs. Each path is compiled from the same
// templates (vectors.h, products.h, elementwise.h, attention.h) and gives the same bits.
#pragma once

#include <cstdint>

#include "format.h"

namespace headrace {

// Rows times packed weights.
struct Product {
  Format format;
  const uint8_t* weights;  // The first block.
  int64_t inputs;
  int64_t outputs;
  int64_t rows;
  // Rows in tiles of as many as the path says, the last one perhaps smaller. In a tile four
  // neighbouring inputs of its first row are followed by those of its second, and so on.
  const int8_t* x;
  const float* scales;  // Of each chunk of inputs, by tile, chunk and row.
  const float* sums;    // What the chunk's inputs come to, rounded.
  float* out;           // [rows, outputs].
};

// An array [rows, heads, tokens, size] whose last axis lies in one piece.
template <class Number>
struct Heads {
  const Number* data;
  int64_t step[3];

  const Number* at(int64_t row, int64_t head, int64_t token) const {
    return data + row * step[0] + head * step[1] + token * step[2];
  }
};

// Softmax of scale * queries * keys over what each query may see, times the values. The queries are
// those of the last tokens of each row.
struct AnyAttention {
  int64_t rows, heads, key_heads, tokens, length;
  int64_t size, value_size;  // Of a head; multiples of 16.
  Heads<float> queries;
  const float*
      padding;  // [rows, length], not 0 for the first keys of a row that are none; or null.
  const float*
      recent;  // [tokens, tokens], 0 where a query sees a key of these; null: those before.
  float scale;
  float* out;  // [rows, heads, tokens, value_size].

  // Numbers of the queries of one head of keys.
  int64_t queries_each() const { return heads / key_heads * tokens; }
};

// With keys and values as they are kept: as float; or as int16_t, times a scale for each vector, a
// float that lies behind its numbers.
template <class Kept>
struct Attention : AnyAttention {
  Heads<Kept> keys, values;
};

// Numbers of 16 bits that a vector's scale takes.
constexpr int kScaleRoom = sizeof(float) / sizeof(int16_t);

// Queries that are computed together, since they share their keys.
constexpr int kQueries = 4;

struct Path {
  const char* name;
  int tile;  // Rows that are computed together.

  // Rounds one row to 8 bits, chunk by chunk. `step`: the rows of its tile, beside which it goes.
  void (*round)(const float* x, int64_t inputs, int step, int8_t* to, float* scales, float* sums);

  // The outputs of some blocks for some rows, which begin with a tile.
  void (*multiply)(const Product& product, int64_t block, int64_t end_block, int64_t row,
                   int64_t end_row);

  // silu(gate) * x.
  void (*swiglu)(const float* gate, const float* x, float* out, int64_t size);

  // 2 to the power of what each number is below the largest of them, times a factor; 2**-126 at
  // least.
  void (*weigh)(const float* x, float factor, float* out, int64_t size);

  // x times the share of a normal distribution below x, or what stands for it, by tanh.
  void (*gelu)(const float* x, bool by_tanh, float* out, int64_t size);

  // x / sqrt(mean(x * x) + eps) * weight, of one row. No weight: as if it were 1.
  void (*rms_norm)(const float* x, const float* weight, float eps, float* out, int64_t size);

  // Turns the pairs of one head's first `turned` numbers by angles, of which `cos` and `sin` have
  // one for each number. Pairs are neighbours, or of the first half and the second.
  void (*rotate)(const float* x, const float* cos, const float* sin, bool neighbours,
                 int64_t turned, int64_t size, float* out);

  // Some queries of one head of keys, no more than `kQueries`. `scores` has room for the length of
  // each, in sixteens.
  void (*attend)(const Attention<float>& attention, int64_t row, int64_t key_head, int64_t query,
                 int64_t end_query, float* scores);
  void (*attend_rounded)(const Attention<int16_t>& attention, int64_t row, int64_t key_head,
                         int64_t query, int64_t end_query, float* scores);

  // One vector of a head as it is kept; see `Attention`. `size` is a multiple of 16.
  void (*round_head)(const float* x, int16_t* out, int64_t size);
};

extern const Path kPortable;
#ifdef HEADRACE_X86
extern const Path kAvx2;
extern const Path kAvxVnni;
extern const Path kAvx512Vnni;
#endif
#ifdef HEADRACE_ARM
extern const Path kNeon;
#endif

}  // namespace headrace
