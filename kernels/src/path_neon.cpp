// For aarch64 with products of bytes: Cortex-A75 and Neoverse N1 of 2018, and later.
#include <arm_neon.h>

#include "path_of.h"

namespace headrace {
namespace {

// An input of -128 to 127 as a number of 0 to 255, which is 128 more.
HEADRACE_INLINE uint8x16_t raised(int8x16_t x) {
  return veorq_u8(vreinterpretq_u8_s8(x), vdupq_n_u8(0x80));
}

struct Neon {
  static constexpr int width = 4;
  static constexpr int together = 1;
  static constexpr int tile = 8;
  using I = Vector<width>::I;

  // The instructions take bytes that are all signed or all unsigned. Weights of 4 bits are both.
  // With 8 bits the inputs are made unsigned, so that the sum has 128 times the weights too much.
  // These are summed beside it: the same for all rows, and computed once.
  template <int Bits>
  struct Sums {
    I sums;
    I weights;

    HEADRACE_INLINE void dot(I w, const int8_t* x, int row, int rows) {
      const int first = row / 4 * 4;
      if (first + 4 <= rows) {
        // Four rows' inputs are loaded together, and one of them is taken.
        const int8x16_t four = vld1q_s8(x + 4 * first);
        switch (row % 4) {
          case 0:
            return add<0>(w, four);
          case 1:
            return add<1>(w, four);
          case 2:
            return add<2>(w, four);
          default:
            return add<3>(w, four);
        }
      }
      int32_t word;
      std::memcpy(&word, x + 4 * row, 4);
      add<0>(w, vreinterpretq_s8_s32(vdupq_n_s32(word)));
    }

    HEADRACE_INLINE I total() const { return Bits == 4 ? sums : sums - 128 * weights; }

   private:
    template <int Word>
    HEADRACE_INLINE void add(I w, int8x16_t x) {
      if constexpr (Bits == 4) {
        sums = bits<I>(vdotq_laneq_s32(bits<int32x4_t>(sums), bits<int8x16_t>(w), x, Word));
      } else {
        const auto bytes = bits<uint8x16_t>(w);
        sums = bits<I>(vdotq_laneq_u32(bits<uint32x4_t>(sums), bytes, raised(x), Word));
        weights = bits<I>(vdotq_u32(bits<uint32x4_t>(weights), bytes, vdupq_n_u8(1)));
      }
    }
  };
};

}  // namespace

const Path kNeon = path_of<Neon>("neon");

}  // namespace headrace
