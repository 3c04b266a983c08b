// What the primitives share.
#pragma once

#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/array.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/device.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"

namespace headrace {

namespace mx = mlx::core;

// Numbers that one thread deals with sooner than another can be asked to help.
constexpr int64_t kAlone = 1 << 15;

inline mx::Stream cpu() { return mx::default_stream(mx::Device::cpu); }

class OnCpu : public mx::Primitive {
 public:
  OnCpu() : Primitive(cpu()) {}
  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("headrace_kernels compute on a CPU alone");
  }

 protected:
  // Has it done in its turn.
  template <class F>
  void dispatch(F&& function) {
    mx::cpu::get_command_encoder(stream()).dispatch(std::forward<F>(function));
  }

  // Memory that is kept until what is dispatched is done.
  template <class T>
  T* scratch(int64_t count) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 2);
    mx::array made({int(count)}, sizeof(T) == 4 ? mx::uint32 : mx::uint16, nullptr, {});
    T* data = allocate<T>(made);
    mx::cpu::get_command_encoder(stream()).add_temporary(made);
    return data;
  }

  template <class T>
  static T* allocate(mx::array& out) {
    out.set_data(mx::allocator::malloc(out.nbytes()));
    return out.data<T>();
  }

  // The numbers in order: as they lie in memory, or copied in the turn of what is dispatched.
  template <class T = float>
  const T* in_order(const mx::array& x) {
    if (x.flags().row_contiguous) return x.data<T>();
    T* to = scratch<T>(x.size());
    dispatch([from = x.data<T>(), to, shape = x.shape(), strides = x.strides(),
              count = int64_t(x.size())] {
      for (int64_t i = 0; i < count; ++i) {
        int64_t rest = i, at = 0;
        for (int axis = int(shape.size()) - 1; axis >= 0; rest /= shape[axis], --axis)
          at += rest % shape[axis] * strides[axis];
        to[i] = from[at];
      }
    });
    return to;
  }
};

inline void check(bool holds, const std::string& message) {
  if (!holds) throw std::invalid_argument("headrace_kernels: " + message);
}

}  // namespace headrace
