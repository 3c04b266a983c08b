// For x86-64 with AVX2, since 2013.
#include <immintrin.h>

#include "path_of.h"

namespace headrace {
namespace {

struct Avx2 {
  static constexpr int width = 8;
  static constexpr int together = 2;
  static constexpr int tile = 4;
  using I = Vector<width>::I;

  template <int Bits>
  struct Sums {
    I sums;

    // VPMADDUBSW adds two products to 16 bits, and cuts off what is too large. With 4 bits nothing
    // is, even over a whole chunk: 16 products of 15 and 127. With 8 bits the two halves of a
    // weight, its highest bit and the rest, are each just small enough.
    HEADRACE_INLINE void dot(I w, const int8_t* x, int row, int) {
      int32_t word;
      std::memcpy(&word, x + 4 * row, 4);
      const __m256i v = _mm256_set1_epi32(word);
      const __m256i weights = bits<__m256i>(w);
      if constexpr (Bits == 4) {
        const __m256i pairs = _mm256_maddubs_epi16(weights, v);
        sums = bits<I>(_mm256_add_epi16(bits<__m256i>(sums), pairs));
        // Else GCC keeps all products of a chunk, in memory, to add them up at its end.
        asm("" : "+x"(sums));
      } else {
        const __m256i top = _mm256_set1_epi8(int8_t(0x80)), ones = _mm256_set1_epi16(1);
        const __m256i most = _mm256_maddubs_epi16(_mm256_and_si256(weights, top), v);
        const __m256i rest = _mm256_maddubs_epi16(_mm256_andnot_si256(top, weights), v);
        sums += bits<I>(_mm256_madd_epi16(most, ones));
        sums += bits<I>(_mm256_madd_epi16(rest, ones));
      }
    }
    HEADRACE_INLINE I total() const {
      if constexpr (Bits == 8) return sums;
      return bits<I>(_mm256_madd_epi16(bits<__m256i>(sums), _mm256_set1_epi16(1)));
    }
  };
};

}  // namespace

const Path kAvx2 = path_of<Avx2>("avx2");

}  // namespace headrace
