// For x86-64 with AVX2 and its products of bytes, AVX-VNNI: Alder Lake, Zen 5 and later.
//
// AVX-512 has the same instruction by another encoding. The tests compile this file with that one
// too, for CPUs that have AVX-512 alone.
#include <immintrin.h>

#include "path_of.h"

namespace headrace {
namespace {

struct AvxVnni {
  static constexpr int width = 8;
  static constexpr int together = 1;
  static constexpr int tile = 8;
  using I = Vector<width>::I;

  static HEADRACE_INLINE __m256i add_products(__m256i sums, __m256i w, __m256i x) {
#ifdef HEADRACE_EVEX
    return _mm256_dpbusd_epi32(sums, w, x);
#else
    return _mm256_dpbusd_avx_epi32(sums, w, x);
#endif
  }

  template <int Bits>
  struct Sums {
    I sums;

    HEADRACE_INLINE void dot(I w, const int8_t* x, int row, int) {
      int32_t word;
      std::memcpy(&word, x + 4 * row, 4);
      sums = bits<I>(add_products(bits<__m256i>(sums), bits<__m256i>(w), _mm256_set1_epi32(word)));
    }
    HEADRACE_INLINE I total() const { return sums; }
  };
};

}  // namespace

#ifdef HEADRACE_EVEX
extern const Path kAvxVnniByEvex;
const Path kAvxVnniByEvex = path_of<AvxVnni>("avxvnni by EVEX");
#else
const Path kAvxVnni = path_of<AvxVnni>("avxvnni");
#endif

}  // namespace headrace
