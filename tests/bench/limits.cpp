// Products of bytes as fast as one core makes them, from its registers: prints how many billions of
// multiplications and additions a second. Its argument: for so many seconds.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#define VECTOR_REGISTER "+v"
#if defined(__AVX512VNNI__)
using Vector = __m512i;
static Vector add(Vector sum, Vector w, Vector x) { return _mm512_dpbusd_epi32(sum, w, x); }
#elif defined(__AVXVNNI__)
using Vector = __m256i;
static Vector add(Vector sum, Vector w, Vector x) { return _mm256_dpbusd_avx_epi32(sum, w, x); }
#else
using Vector = __m256i;
static Vector add(Vector sum, Vector w, Vector x) {
  return _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x));
}
#endif
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#define VECTOR_REGISTER "+w"
using Vector = int32x4_t;
static Vector add(Vector sum, Vector w, Vector x) {
  return vdotq_s32(sum, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
}
#else
#error no products of bytes
#endif

// A step of a sum, which the compiler can neither foresee nor join with another one.
#define STEP(sum) asm volatile("" : VECTOR_REGISTER(sum)); sum = add(sum, w, x)

int main(int, char** arguments) {
  using Clock = std::chrono::steady_clock;
  Vector w, x;
  std::memset(&w, 1, sizeof w), std::memset(&x, 1, sizeof x);
  // As many sums as it takes to have one that is ready each time.
  Vector a = {}, b = {}, c = {}, d = {}, e = {}, f = {}, g = {}, h = {}, i = {}, j = {};
  double count = 0;
  const auto begin = Clock::now();
  const auto end = begin + std::chrono::duration<double>(std::atof(arguments[1]));
  auto now = begin;
  for (; now < end; now = Clock::now()) {
    for (int turn = 0; turn < 100000; ++turn) {
      STEP(a); STEP(b); STEP(c); STEP(d); STEP(e); STEP(f); STEP(g); STEP(h); STEP(i); STEP(j);
    }
    count += 10 * 100000.0;
  }
  const Vector total = a + b + c + d + e + f + g + h + i + j;
  asm volatile("" : : "m"(total));  // Or nobody would want the sums.
  const double seconds = std::chrono::duration<double>(now - begin).count();
  std::printf("%.1f\n", count * sizeof(Vector) * 2 / seconds / 1e9);
}
