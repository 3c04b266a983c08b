// For x86-64 with AVX-512 and its products of bytes: Ice Lake, Zen 4 and later.
#include <immintrin.h>

#include "path_of.h"

namespace headrace {
namespace {

struct Avx512Vnni {
  static constexpr int width = 16;
  static constexpr int together = 1;
  static constexpr int tile = 8;
  using I = Vector<width>::I;

  template <int Bits>
  struct Sums {
    I sums;

    HEADRACE_INLINE void dot(I w, const int8_t* x, int row, int) {
      int32_t word;
      std::memcpy(&word, x + 4 * row, 4);
      sums = bits<I>(
          _mm512_dpbusd_epi32(bits<__m512i>(sums), bits<__m512i>(w), _mm512_set1_epi32(word)));
    }
    HEADRACE_INLINE I total() const { return sums; }
  };
};

}  // namespace

const Path kAvx512Vnni = path_of<Avx512Vnni>("avx512vnni");

}  // namespace headrace
