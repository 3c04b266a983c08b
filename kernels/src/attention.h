// Attention of single queries over the keys that each may see; see path.h for what is where.
//
// Each key's score, the largest of them, and the sums over keys and values are computed one key
// after another, and what a query may not see adds nothing. So a result depends on the query and on
// what it sees alone: not on how long other rows are, nor on how many queries are computed
// together.
#pragma once

#include <limits>

#include "elementwise.h"
#include "path.h"
#include "vectors.h"

namespace headrace {
namespace {

// The sums of sixteen vectors' lanes, each in the same order.
HEADRACE_INLINE F16 sums(F16* v) {
  for (int i = 0; i < 8; ++i)
    v[i] = __builtin_shufflevector(v[i], v[i + 8], 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21,
                                   22, 23) +
           __builtin_shufflevector(v[i], v[i + 8], 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28,
                                   29, 30, 31);
  for (int i = 0; i < 4; ++i)
    v[i] = __builtin_shufflevector(v[i], v[i + 4], 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25,
                                   26, 27) +
           __builtin_shufflevector(v[i], v[i + 4], 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28,
                                   29, 30, 31);
  for (int i = 0; i < 2; ++i)
    v[i] = __builtin_shufflevector(v[i], v[i + 2], 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13,
                                   28, 29) +
           __builtin_shufflevector(v[i], v[i + 2], 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14,
                                   15, 30, 31);
  return __builtin_shufflevector(v[0], v[1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14,
                                 30) +
         __builtin_shufflevector(v[0], v[1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15,
                                 31);
}

// One query's scores for sixteen keys, of which the last may be there several times.
HEADRACE_INLINE F16 scores_of(const float* query, const float* keys, int64_t step, int count,
                              int64_t size) {
  F16 dots[16] = {};
  for (int64_t at = 0; at < size; at += 16) {
    const F16 q = load<F16>(query + at);
    for (int i = 0; i < 16; ++i)
      dots[i] += q * load<F16>(keys + (i < count ? i : count - 1) * step + at);
  }
  return sums(dots);
}

// Weighted values, `Vectors` times sixteen of each.
template <int Vectors>
HEADRACE_INLINE void add_values(const float* weights, int64_t count, const float* values,
                                int64_t step, float total, float* out) {
  F16 result[Vectors] = {};
  for (int64_t key = 0; key < count; ++key)
    for (int i = 0; i < Vectors; ++i)
      result[i] += weights[key] * load<F16>(values + key * step + 16 * i);
  for (int i = 0; i < Vectors; ++i) store(out + 16 * i, result[i] / total);
}

// In place: what each score weighs, 0 behind the last; gives their sum.
HEADRACE_INLINE float weigh(float* scores, int64_t count) {
  F16 most = F16{} - std::numeric_limits<float>::infinity();
  for (int64_t at = 0; at < count; at += 16) {
    const F16 some = load<F16>(scores + at);
    most = some > most ? some : most;
  }
  float largest = most[0];
  for (int i = 1; i < 16; ++i) largest = most[i] > largest ? most[i] : largest;
  for (int64_t at = 0; at < count; at += 16)
    store(scores + at, exponential(load<F16>(scores + at) - largest));
  float total = 0;
  for (int64_t at = 0; at < count; ++at) total += scores[at];
  return total;
}

void attend(const Attention& a, int64_t row, int64_t head, int64_t first, int64_t end,
            float* scores) {
  constexpr float kNever = -std::numeric_limits<float>::infinity();
  const int64_t before = a.length - a.tokens, shared = a.heads / a.key_heads;
  int64_t start = 0;
  if (a.padding)
    while (start < before && a.padding[row * a.length + start] != 0) ++start;
  const float* keys = a.keys.at(row, head, start);
  const float* values = a.values.at(row, head, start);
  const int64_t room = (a.length + 15) / 16 * 16;
  const auto seen = [&](int64_t query) {
    return (a.recent ? a.length : before + query % a.tokens + 1) - start;
  };
  const auto head_of = [&](int64_t query) { return head * shared + query / a.tokens; };

  const int64_t most = a.length - start;
  for (int64_t key = 0; key < most; key += 16) {
    for (int64_t query = first; query < end; ++query) {
      const int64_t left = seen(query) - key;
      if (left <= 0) continue;
      F16 found = a.scale * scores_of(a.queries.at(row, head_of(query), query % a.tokens),
                                      keys + key * a.keys.step[2], a.keys.step[2],
                                      left < 16 ? left : 16, a.size);
      float* to = scores + (query - first) * room + key;
      store(to, found);
      for (int64_t i = left; i < 16; ++i) to[i] = kNever;
    }
  }
  for (int64_t query = first; query < end; ++query) {
    float* mine = scores + (query - first) * room;
    const int64_t token = query % a.tokens, count = seen(query);
    if (a.recent)
      for (int64_t other = 0; other < a.tokens; ++other)
        if (a.recent[token * a.tokens + other] != 0) mine[before - start + other] = kNever;
    const float total = weigh(mine, count);
    float* out = a.out + ((row * a.heads + head_of(query)) * a.tokens + token) * a.value_size;
    int64_t at = 0;
    for (; at + 64 <= a.value_size; at += 64)
      add_values<4>(mine, count, values + at, a.values.step[2], total, out + at);
    for (; at < a.value_size; at += 16)
      add_values<1>(mine, count, values + at, a.values.step[2], total, out + at);
  }
}

}  // namespace
}  // namespace headrace
