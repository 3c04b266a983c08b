// Vectors by the compiler's own extension, which makes of them whatever the path's flags allow.
//
// Included by paths alone, within an unnamed namespace of theirs: what a path compiles may use
// instructions that other CPUs lack, so that no function of it may be shared by the linker.
#pragma once

#include <cstdint>
#include <cstring>

#include "format.h"

namespace headrace {
namespace {

template <int Width>
struct Vector {
  typedef float F __attribute__((vector_size(Width * 4)));
  typedef int32_t I __attribute__((vector_size(Width * 4)));
  typedef uint16_t H __attribute__((vector_size(Width * 2)));
  typedef int16_t S __attribute__((vector_size(Width * 2)));
  typedef uint32_t U __attribute__((vector_size(Width * 4)));
};

// Numbers in a register: of wider vectors GCC makes single numbers in memory. What is added up has
// sixteen sums all the same, in as many registers as that takes, so that it is rounded alike.
#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kSums = 16;
constexpr int kParts = kSums / kWidth;

using F = Vector<kWidth>::F;
using I = Vector<kWidth>::I;

constexpr float kRounder = 0x1.8p23f;  // Added to a small number, it leaves a whole one behind.

#define HEADRACE_INLINE inline __attribute__((always_inline))

template <class V>
HEADRACE_INLINE V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
HEADRACE_INLINE void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

// The same bits as another type.
template <class To, class From>
HEADRACE_INLINE To bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class To, class From>
HEADRACE_INLINE To convert(From from) {
  return __builtin_convertvector(from, To);
}

// Half precision, without the instruction for it; what the hardware would give, denormal numbers,
// infinities and NaN included.
template <int Width>
HEADRACE_INLINE typename Vector<Width>::F widen_half(typename Vector<Width>::U half) {
  using F = typename Vector<Width>::F;
  using U = typename Vector<Width>::U;
  U sign = (half & 0x8000u) << 16;
  U rest = half & 0x7fffu;
  // Exponents are off by 112; the product rights them, denormal numbers too.
  U scaled = bits<U>(bits<F>(rest << 13) * 0x1p112f);
  U special = (rest << 13) | 0x7f800000u;
  return bits<F>(sign | (rest >= 0x7c00u ? special : scaled));
}

template <int Width, Scale S>
HEADRACE_INLINE typename Vector<Width>::F load_scales(const uint8_t* from, int first) {
  using V = Vector<Width>;
  if constexpr (S == Scale::f32) return load<typename V::F>(from + 4 * first);
  auto wide = convert<typename V::U>(load<typename V::H>(from + 2 * first));
  if constexpr (S == Scale::bf16) return bits<typename V::F>(wide << 16);
  return widen_half<Width>(wide);
}

// The sum of sixteen sums, always in the same order.
HEADRACE_INLINE float sum(const F (&parts)[kParts]) {
  float lanes[kSums];
  std::memcpy(lanes, parts, sizeof lanes);
  for (int width = kSums / 2; width >= 1; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

HEADRACE_INLINE int32_t sum(I v) {
  int32_t total = 0;
  for (int i = 0; i < kWidth; ++i) total += v[i];
  return total;
}

template <class V>
HEADRACE_INLINE auto greatest(V v) {
  auto most = v[0];
  for (int i = 1; i < kWidth; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// The larger of sizes so far and those of some numbers, by their bits: as whole numbers these are
// in order, infinity and NaN above all others.
HEADRACE_INLINE I larger(I sizes, F x) {
  const I size = bits<I>(x) & 0x7fffffff;
  return size > sizes ? size : sizes;
}

// How numbers are rounded together: to whole ones up to `most`, by the largest of them, whose bits
// are given. `scale` is what the whole ones are multiplied with. They are 0, and it is as well,
// where all numbers are smaller than `least`; and it is NaN where one is not finite.
struct Rounding {
  float scale = 0;

  HEADRACE_INLINE Rounding(int32_t largest, float most, float least) {
    constexpr int32_t kInfinity = 0x7f800000;
    const float size = bits<float>(largest);
    finite_ = largest < kInfinity;
    if (!finite_) {
      scale = bits<float>(int32_t(0x7fc00000));
    } else if (size >= least) {
      scale = size / most;
      inverse_ = most / size;
    }
  }

  HEADRACE_INLINE I whole(F x) const {
    return bits<I>((finite_ ? x : F{}) * inverse_ + kRounder) - bits<int32_t>(kRounder);
  }

 private:
  float inverse_ = 0;
  bool finite_;
};

}  // namespace
}  // namespace headrace
