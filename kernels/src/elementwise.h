// Functions of single numbers and of rows.
#pragma once

#include <cmath>
#include <limits>

#include "vectors.h"

namespace headrace {
namespace {

// 2**n * exp(left), for a whole number n and what is left of one: by a series, and by the bits of
// 2**n in two halves since n may be 128.
HEADRACE_INLINE F scaled_exponential(I n, F left) {
  constexpr float kFactors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f};
  F series = left * (1.0f / 5040);
  for (float factor : kFactors) series = (series + factor) * left;
  series += 1.0f;
  const I half = n >> 1;
  return series * bits<F>((half + 127) << 23) * bits<F>((n - half + 127) << 23);
}

// exp(x), off by at most 2e-7 of it. 0 below -87, infinity above 88.7, NaN of NaN.
HEADRACE_INLINE F exponential(F x) {
  const F lowest = F{} - 87.0f, highest = F{} + 89.0f;
  F within = x < lowest ? lowest : x;  // NaN passes both.
  within = within > highest ? highest : within;
  const F shifted = within * 0x1.715476p0f + kRounder;
  const F whole = shifted - kRounder;
  // ln 2 in two parts, of which the first has few bits, so that its product is exact.
  const F left = (within - whole * 0x1.62e4p-1f) - whole * 0x1.7f7d1cp-20f;
  const F result = scaled_exponential(bits<I>(shifted) - bits<int32_t>(kRounder), left);
  const F nothing = {};
  return x != x ? x : (x < lowest ? nothing : result);
}

// 2**x for x up to 0, as precise; 2**-126, the smallest normal number, of what is less and of NaN.
HEADRACE_INLINE F power_of_two(F x) {
  const F lowest = F{} - 126.0f;
  const F within = x > lowest ? x : lowest;
  const F shifted = within + kRounder;
  const F left = (within - (shifted - kRounder)) * 0x1.62e43p-1f;
  return scaled_exponential(bits<I>(shifted) - bits<int32_t>(kRounder), left);
}

// 2 to the power of what each number is below the largest, times a factor.
void weigh(const float* x, float factor, float* out, int64_t size) {
  const float least = -std::numeric_limits<float>::infinity();
  F most = F{} + least;
  const int64_t whole = size / kWidth * kWidth;
  for (int64_t at = 0; at < whole; at += kWidth) {
    const F some = load<F>(x + at);
    most = some > most ? some : most;
  }
  float largest = greatest(most);
  for (int64_t at = whole; at < size; ++at) largest = x[at] > largest ? x[at] : largest;
  for (int64_t at = 0; at < whole; at += kWidth)
    store(out + at, power_of_two((load<F>(x + at) - largest) * factor));
  if (whole == size) return;
  float some[kWidth] = {};
  std::memcpy(some, x + whole, 4 * (size - whole));
  const F last = power_of_two((load<F>(some) - largest) * factor);
  std::memcpy(out + whole, &last, 4 * (size - whole));
}

HEADRACE_INLINE F swiglu(F gate, F x) { return gate / (1.0f + exponential(-gate)) * x; }

void swiglu(const float* gate, const float* x, float* out, int64_t size) {
  int64_t at = 0;
  for (; at + kWidth <= size; at += kWidth)
    store(out + at, swiglu(load<F>(gate + at), load<F>(x + at)));
  if (at == size) return;
  float some[2][kWidth] = {};
  std::memcpy(some[0], gate + at, 4 * (size - at));
  std::memcpy(some[1], x + at, 4 * (size - at));
  F last = swiglu(load<F>(some[0]), load<F>(some[1]));
  std::memcpy(out + at, &last, 4 * (size - at));
}

// x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x))) / 2, of which tanh is one of exp.
HEADRACE_INLINE F gelu_by_tanh(F x) {
  const F twice = x * (1.0f + 0.044715f * x * x) * 1.5957691216f;
  return x / (1.0f + exponential(-twice));
}

// x times the share of a normal distribution below x. What lies beyond |x|: a series by Abramowitz
// and Stegun (7.1.26), which is off by 1e-7 at most.
HEADRACE_INLINE F gelu(F x) {
  constexpr float kFactors[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
  const F size = bits<F>(bits<I>(x) & 0x7fffffff);
  const F t = 1.0f / (1.0f + size * (0.3275911f * 0.70710678f));
  F series = 1.061405429f * t;
  for (float factor : kFactors) series = (series + factor) * t;
  const F beyond = 0.5f * series * exponential(x * x * -0.5f);
  return x * (x < 0.0f ? beyond : 1.0f - beyond);
}

void gelu(const float* x, bool by_tanh, float* out, int64_t size) {
  for (int64_t at = 0; at < size; at += kWidth) {
    const int64_t bytes = 4 * (size - at < kWidth ? size - at : kWidth);
    F some = {};
    std::memcpy(&some, x + at, bytes);
    some = by_tanh ? gelu_by_tanh(some) : gelu(some);
    std::memcpy(out + at, &some, bytes);
  }
}

void rms_norm(const float* x, const float* weight, float eps, float* out, int64_t size) {
  F squares[kParts] = {};
  const int64_t whole = size / kSums * kSums;
  for (int64_t at = 0; at < whole; at += kSums)
    for (int i = 0; i < kParts; ++i) {
      const F v = load<F>(x + at + i * kWidth);
      squares[i] += v * v;
    }
  float total = sum(squares);
  for (int64_t at = whole; at < size; ++at) total += x[at] * x[at];
  const float factor = 1.0f / std::sqrt(total / float(size) + eps);
  for (int64_t at = 0; at < size; ++at) out[at] = x[at] * factor * (weight ? weight[at] : 1.0f);
}

// Pairs of neighbours. By vectors, since of single numbers GCC makes products and sums that are one
// rounding, whatever it is told.
HEADRACE_INLINE F rotate(F x, F cos, F sin) {
  typedef uint64_t Pairs __attribute__((vector_size(sizeof(F))));
  const Pairs pairs = bits<Pairs>(x), swapped = pairs << 32 | pairs >> 32;
  // The first of each has its sign turned.
  return x * cos + bits<F>(swapped ^ 0x80000000u) * sin;
}

void rotate(const float* __restrict x, const float* __restrict cos, const float* __restrict sin,
            bool neighbours, int64_t turned, int64_t size, float* __restrict out) {
  std::memcpy(out + turned, x + turned, 4 * (size - turned));
  if (!neighbours) {
    const int64_t half = turned / 2;
    for (int64_t i = 0; i < half; ++i) out[i] = x[i] * cos[i] - x[i + half] * sin[i];
    for (int64_t i = half; i < turned; ++i) out[i] = x[i] * cos[i] + x[i - half] * sin[i];
    return;
  }
  for (int64_t at = 0; at < turned; at += kWidth) {
    const int64_t bytes = 4 * (turned - at < kWidth ? turned - at : kWidth);
    F some[3] = {};
    std::memcpy(&some[0], x + at, bytes);
    std::memcpy(&some[1], cos + at, bytes);
    std::memcpy(&some[2], sin + at, bytes);
    const F result = rotate(some[0], some[1], some[2]);
    std::memcpy(out + at, &result, bytes);
  }
}

}  // namespace
}  // namespace headrace
