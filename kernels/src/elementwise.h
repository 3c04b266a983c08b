// Functions of single numbers and of rows, sixteen numbers at a time.
#pragma once

#include <cmath>

#include "vectors.h"

namespace headrace {
namespace {

// exp(x), off by at most 2e-7 of it: 2**n times a series for what is left. 0 below -87, infinity
// above 88.7, NaN of NaN.
HEADRACE_INLINE F16 exponential(F16 x) {
  constexpr float kRounder = 0x1.8p23f;
  constexpr float kFactors[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f};
  const F16 lowest = F16{} - 87.0f, highest = F16{} + 89.0f;
  F16 within = x < lowest ? lowest : x;  // NaN passes both.
  within = within > highest ? highest : within;
  const F16 shifted = within * 0x1.715476p0f + kRounder;
  const I16 n = bits<I16>(shifted) - bits<int32_t>(kRounder);
  const F16 whole = shifted - kRounder;
  // ln 2 in two parts, of which the first has few bits, so that its product is exact.
  const F16 left = (within - whole * 0x1.62e4p-1f) - whole * 0x1.7f7d1cp-20f;
  F16 series = left * (1.0f / 5040);
  for (float factor : kFactors) series = (series + factor) * left;
  series += 1.0f;
  // 2**n by its bits, in two halves since n may be 128.
  const I16 half = n >> 1;
  const F16 result = series * bits<F16>((half + 127) << 23) * bits<F16>((n - half + 127) << 23);
  const F16 nothing = {};
  return x != x ? x : (x < lowest ? nothing : result);
}

HEADRACE_INLINE F16 swiglu(F16 gate, F16 x) { return gate / (1.0f + exponential(-gate)) * x; }

void swiglu(const float* gate, const float* x, float* out, int64_t size) {
  int64_t at = 0;
  for (; at + 16 <= size; at += 16)
    store(out + at, swiglu(load<F16>(gate + at), load<F16>(x + at)));
  if (at == size) return;
  float some[2][16] = {};
  std::memcpy(some[0], gate + at, 4 * (size - at));
  std::memcpy(some[1], x + at, 4 * (size - at));
  F16 last = swiglu(load<F16>(some[0]), load<F16>(some[1]));
  std::memcpy(out + at, &last, 4 * (size - at));
}

// x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x))) / 2, of which tanh is one of exp.
HEADRACE_INLINE F16 gelu_by_tanh(F16 x) {
  const F16 twice = x * (1.0f + 0.044715f * x * x) * 1.5957691216f;
  return x / (1.0f + exponential(-twice));
}

// x times the share of a normal distribution below x. What lies beyond |x|: a series by Abramowitz
// and Stegun (7.1.26), which is off by 1e-7 at most.
HEADRACE_INLINE F16 gelu(F16 x) {
  constexpr float kFactors[] = {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
  const F16 size = bits<F16>(bits<I16>(x) & 0x7fffffff);
  const F16 t = 1.0f / (1.0f + size * (0.3275911f * 0.70710678f));
  F16 series = 1.061405429f * t;
  for (float factor : kFactors) series = (series + factor) * t;
  const F16 beyond = 0.5f * series * exponential(x * x * -0.5f);
  return x * (x < 0.0f ? beyond : 1.0f - beyond);
}

void gelu(const float* x, bool by_tanh, float* out, int64_t size) {
  for (int64_t at = 0; at < size; at += 16) {
    const int64_t bytes = 4 * (size - at < 16 ? size - at : 16);
    F16 some = {};
    std::memcpy(&some, x + at, bytes);
    some = by_tanh ? gelu_by_tanh(some) : gelu(some);
    std::memcpy(out + at, &some, bytes);
  }
}

void rms_norm(const float* x, const float* weight, float eps, float* out, int64_t size) {
  F16 squares = {};
  const int64_t whole = size / 16 * 16;
  for (int64_t at = 0; at < whole; at += 16) {
    F16 v = load<F16>(x + at);
    squares += v * v;
  }
  float total = sum(squares);
  for (int64_t at = whole; at < size; ++at) total += x[at] * x[at];
  const float factor = 1.0f / std::sqrt(total / float(size) + eps);
  for (int64_t at = 0; at < size; ++at) out[at] = x[at] * factor * (weight ? weight[at] : 1.0f);
}

// Pairs of neighbours. By vectors, since of single numbers GCC makes products and sums that are one
// rounding, whatever it is told.
HEADRACE_INLINE F16 rotate(F16 x, F16 cos, F16 sin) {
  const F16 turned =
      __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
  const F16 signs = {-1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1};
  return x * cos + turned * signs * sin;
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
  for (int64_t at = 0; at < turned; at += 16) {
    const int64_t bytes = 4 * (turned - at < 16 ? turned - at : 16);
    F16 some[3] = {};
    std::memcpy(&some[0], x + at, bytes);
    std::memcpy(&some[1], cos + at, bytes);
    std::memcpy(&some[2], sin + at, bytes);
    const F16 result = rotate(some[0], some[1], some[2]);
    std::memcpy(out + at, &result, bytes);
  }
}

}  // namespace
}  // namespace headrace
