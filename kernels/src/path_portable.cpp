// For any CPU: what the compiler makes of vectors of four numbers.
#include "attention.h"
#include "elementwise.h"
#include "products.h"

namespace headrace {
namespace {

struct Portable {
  static constexpr int width = 4;
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

const Path kPortable = {"portable", Portable::tile, round_row, multiply<Portable>, swiglu, gelu,
                        rms_norm,   rotate,         attend};

}  // namespace headrace
