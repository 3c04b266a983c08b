#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "dispatch.h"
#include "pool.h"
#include "primitives.h"

namespace nb = nanobind;
using namespace nb::literals;
using headrace::Layout;

NB_MODULE(_ext, m) {
  // MLX's arrays are known once MLX is there.
  nb::module_::import_("mlx.core");

  nb::class_<Layout>(m, "Layout")
      .def_ro("inputs", &Layout::inputs)
      .def_ro("outputs", &Layout::outputs)
      .def_ro("matrices", &Layout::matrices)
      .def_prop_ro("bits", [](const Layout& layout) { return layout.format.bits; })
      .def_prop_ro("group_size", [](const Layout& layout) { return layout.format.group; });

  m.def("layout_of", &headrace::layout_of, "weight"_a, "scales"_a, "biases"_a, "group_size"_a,
        "bits"_a);
  m.def("pack", &headrace::pack, "weight"_a, "scales"_a, "biases"_a, "layout"_a);
  m.def("multiply", &headrace::multiply, "x"_a, "packed"_a, "layout"_a);
  m.def("gather_multiply", &headrace::gather_multiply, "x"_a, "indices"_a, "packed"_a, "layout"_a);
  m.def("take", &headrace::take, "indices"_a, "packed"_a, "layout"_a);
  m.def("swiglu", &headrace::swiglu, "gate"_a, "x"_a);
  m.def("weigh", &headrace::weigh, "x"_a, "factors"_a);
  m.def("gelu", &headrace::gelu, "x"_a, "by_tanh"_a);
  m.def("rms_norm", &headrace::rms_norm, "x"_a, "weight"_a, "eps"_a);
  m.def("rotate", &headrace::rotate, "x"_a, "cos"_a, "sin"_a, "turned"_a, "neighbours"_a);
  m.def("round_heads", &headrace::round_heads, "x"_a);
  m.def("attend", &headrace::attend, "queries"_a, "keys"_a, "values"_a, "scale"_a,
        "padding"_a = nb::none(), "recent"_a = nb::none());
  m.def("paths", &headrace::paths);
  m.def("path", [] { return std::string(headrace::path().name); });
  m.def("use", &headrace::use, "name"_a);
  m.def("threads", [] { return headrace::pool().threads(); });
  m.def("set_threads", [](int threads) { headrace::pool().resize(threads); }, "threads"_a);
}
