// For any CPU: what the compiler makes of vectors of four numbers.
#include "path_of.h"

namespace headrace {
namespace {

struct Portable {
  static constexpr int width = 4;
  static constexpr int together = 1;
  static constexpr int tile = 4;

  template <int Bits>
  struct Sums {
    using I = Vector<width>::I;
    I sums;

    HEADRACE_INLINE void dot(I w, const int8_t* x, int row, int) {
      for (int i = 0; i < 4; ++i) sums += ((w >> (8 * i)) & 0xff) * int32_t(x[4 * row + i]);
    }
    HEADRACE_INLINE I total() const { return sums; }
  };
};

}  // namespace

const Path kPortable = path_of<Portable>("portable");

}  // namespace headrace
