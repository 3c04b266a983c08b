// Attention of single queries over the keys that each may see; see path.h for what is where.
//
// Each key's score, the largest of them, and the sums over keys and values are computed one key
// after another, and what a query may not see adds nothing. So a result depends on the query and on
// what it sees alone: not on how long other rows are, nor on how many queries are computed
// together.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include <limits>

#include "elementwise.h"
#include "path.h"
#include "vectors.h"

namespace headrace {
namespace {

// Of sixteen times sixteen sums what each sixteen come to, in the order of `sum`. `kInRegisters`:
// for how many of these registers have room while they are made.
#ifdef __AVX512F__
constexpr int kInRegisters = 16;

HEADRACE_INLINE void add_up(F (*v)[1], float* to) {
  for (int i = 0; i < 8; ++i)
    v[i][0] = __builtin_shufflevector(v[i][0], v[i + 8][0], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19,
                                      20, 21, 22, 23) +
              __builtin_shufflevector(v[i][0], v[i + 8][0], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25,
                                      26, 27, 28, 29, 30, 31);
  for (int i = 0; i < 4; ++i)
    v[i][0] = __builtin_shufflevector(v[i][0], v[i + 4][0], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10,
                                      11, 24, 25, 26, 27) +
              __builtin_shufflevector(v[i][0], v[i + 4][0], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14,
                                      15, 28, 29, 30, 31);
  for (int i = 0; i < 2; ++i)
    v[i][0] = __builtin_shufflevector(v[i][0], v[i + 2][0], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24,
                                      25, 12, 13, 28, 29) +
              __builtin_shufflevector(v[i][0], v[i + 2][0], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26,
                                      27, 14, 15, 30, 31);
  store(to, __builtin_shufflevector(v[0][0], v[1][0], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12,
                                    28, 14, 30) +
                __builtin_shufflevector(v[0][0], v[1][0], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27,
                                        13, 29, 15, 31));
}
#else
constexpr int kInRegisters = 4;

using F4 = Vector<4>::F;

HEADRACE_INLINE F4 in_four(const F (&v)[kParts]) {
#ifdef __AVX2__
  const F eight = v[0] + v[1];
  return __builtin_shufflevector(eight, eight, 0, 1, 2, 3) +
         __builtin_shufflevector(eight, eight, 4, 5, 6, 7);
#else
  return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

HEADRACE_INLINE F4 in_two(F4 a, F4 b) {
  return __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
}

HEADRACE_INLINE void add_up(F (*v)[kParts], float* to) {
  for (int i = 0; i < 16; i += 4) {
    const F4 a = in_two(in_four(v[i]), in_four(v[i + 1]));
    const F4 b = in_two(in_four(v[i + 2]), in_four(v[i + 3]));
    store(to + i,
          __builtin_shufflevector(a, b, 0, 2, 4, 6) + __builtin_shufflevector(a, b, 1, 3, 5, 7));
  }
}
#endif

// Numbers as they are kept. To widen them anew for each query takes less time than to keep what has
// been widened for the next.
HEADRACE_INLINE F load_kept(const float* from) { return load<F>(from); }
HEADRACE_INLINE F load_kept(const int16_t* from) {
#if defined(__AVX512F__)
  // With a mask of all: without one, GCC 12 warns of its own header.
  return convert<F>(bits<I>(_mm512_maskz_cvtepi16_epi32(0xffff, load<__m256i>(from))));
#elif defined(__AVX2__)
  return convert<F>(bits<I>(_mm256_cvtepi16_epi32(load<__m128i>(from))));
#else
  return convert<F>(convert<I>(load<Vector<kWidth>::S>(from)));
#endif
}

// The scale of a vector, which lies behind its numbers.
HEADRACE_INLINE float scale_at(const float*) { return 1; }
HEADRACE_INLINE float scale_at(const int16_t* end) { return load<float>(end); }

void round_head(const float* x, int16_t* out, int64_t size) {
  I sizes = {};
  for (int64_t at = 0; at < size; at += kWidth) sizes = larger(sizes, load<F>(x + at));
  // 32767 divided by what is smaller would be infinite.
  const Rounding rounding(greatest(sizes), 32767.0f, 1e-33f);
  for (int64_t at = 0; at < size; at += kWidth)
    store(out + at, convert<Vector<kWidth>::S>(rounding.whole(load<F>(x + at))));
  store(out + size, rounding.scale);
}

// One query's scores for sixteen keys, of which the last may be there several times, times
// `scales`.
template <class Kept>
HEADRACE_INLINE void scores_of(const float* query, const Kept* keys, int64_t step, int count,
                               int64_t size, const float* scales, float* to) {
  F dots[16][kParts];
  for (int first = 0; first < 16; first += kInRegisters) {
    F some[kInRegisters][kParts] = {};
    for (int64_t at = 0; at < size; at += kSums)
      for (int part = 0; part < kParts; ++part) {
        const F q = load<F>(query + at + part * kWidth);
        for (int i = 0; i < kInRegisters; ++i) {
          const int key = first + i < count ? first + i : count - 1;
          some[i][part] += q * load_kept(keys + key * step + at + part * kWidth);
        }
      }
    std::memcpy(&dots[first], some, sizeof some);
  }
  add_up(dots, to);
  for (int i = 0; i < 16; i += kWidth) store(to + i, load<F>(scales + i) * load<F>(to + i));
}

// Weighted values, `Vectors` registers of each, which end `left` numbers further on.
template <int Vectors, class Kept>
HEADRACE_INLINE void add_values(const float* weights, int64_t count, const Kept* values,
                                int64_t step, int64_t left, float total, float* out) {
  F result[Vectors] = {};
  for (int64_t key = 0; key < count; ++key) {
    const Kept* value = values + key * step;
    const float weight = weights[key] * scale_at(value + left);
    for (int i = 0; i < Vectors; ++i) result[i] += weight * load_kept(value + kWidth * i);
  }
  for (int i = 0; i < Vectors; ++i) store(out + kWidth * i, result[i] / total);
}

// In place: what each score weighs, 0 behind the last; gives their sum.
HEADRACE_INLINE float softmax(float* scores, int64_t count) {
  F most = F{} - std::numeric_limits<float>::infinity();
  for (int64_t at = 0; at < count; at += kWidth) {
    const F some = load<F>(scores + at);
    most = some > most ? some : most;
  }
  const float largest = greatest(most);
  for (int64_t at = 0; at < count; at += kWidth)
    store(scores + at, exponential(load<F>(scores + at) - largest));
  float total = 0;
  for (int64_t at = 0; at < count; ++at) total += scores[at];
  return total;
}

template <class Kept>
void attend(const Attention<Kept>& a, int64_t row, int64_t head, int64_t first, int64_t end,
            float* scores) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const int64_t before = a.length - a.tokens, shared = a.heads / a.key_heads;
  int64_t start = 0;
  if (a.padding)
    while (start < before && a.padding[row * a.length + start] != 0) ++start;
  const Kept* keys = a.keys.at(row, head, start);
  const Kept* values = a.values.at(row, head, start);
  const int64_t room = (a.length + 15) / 16 * 16;
  const auto seen = [&](int64_t query) {
    return (a.recent ? a.length : before + query % a.tokens + 1) - start;
  };
  const auto head_of = [&](int64_t query) { return head * shared + query / a.tokens; };

  const int64_t most = a.length - start;
  for (int64_t key = 0; key < most; key += 16) {
    float scales[16] = {};
    for (int i = 0; i < 16 && key + i < most; ++i)
      scales[i] = a.scale * scale_at(keys + (key + i) * a.keys.step[2] + a.size);
    for (int64_t query = first; query < end; ++query) {
      const int64_t left = seen(query) - key;
      if (left <= 0) continue;
      float* to = scores + (query - first) * room + key;
      scores_of(a.queries.at(row, head_of(query), query % a.tokens), keys + key * a.keys.step[2],
                a.keys.step[2], left < 16 ? left : 16, a.size, scales, to);
      for (int64_t i = left; i < 16; ++i) to[i] = kNever;
    }
  }
  for (int64_t query = first; query < end; ++query) {
    float* mine = scores + (query - first) * room;
    const int64_t token = query % a.tokens, count = seen(query);
    if (a.recent)
      for (int64_t other = 0; other < a.tokens; ++other)
        if (a.recent[token * a.tokens + other] != 0) mine[before - start + other] = kNever;
    const float total = softmax(mine, count);
    float* out = a.out + ((row * a.heads + head_of(query)) * a.tokens + token) * a.value_size;
    constexpr int kMany = 64 / kWidth < 8 ? 64 / kWidth : 8;
    int64_t at = 0;
    for (; at + kMany * kWidth <= a.value_size; at += kMany * kWidth)
      add_values<kMany>(mine, count, values + at, a.values.step[2], a.value_size - at, total,
                        out + at);
    for (; at < a.value_size; at += kWidth)
      add_values<1>(mine, count, values + at, a.values.step[2], a.value_size - at, total, out + at);
  }
}

}  // namespace
}  // namespace headrace
