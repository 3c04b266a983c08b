// A path, of what its file says of the products of bytes, and of what is compiled for all of them.
#pragma once

#include "attention.h"
#include "elementwise.h"
#include "path.h"
#include "products.h"

namespace headrace {
namespace {

template <class Products>
constexpr Path path_of(const char* name) {
  return {
      .name = name,
      .tile = Products::tile,
      .round = round_row,
      .multiply = multiply<Products>,
      .swiglu = swiglu,
      .weigh = weigh,
      .gelu = gelu,
      .rms_norm = rms_norm,
      .rotate = rotate,
      .attend = attend<float>,
      .attend_rounded = attend<int16_t>,
      .round_head = round_head,
  };
}

}  // namespace
}  // namespace headrace
