// What lies between the products of a layer.
#include <algorithm>

#include "dispatch.h"
#include "path.h"
#include "pool.h"
#include "primitive.h"
#include "primitives.h"

namespace headrace {
namespace {

class SwiGlu : public OnCpu {
 public:
  const char* name() const override { return "HeadraceSwiGlu"; }
  bool is_equivalent(const Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const float *gate = in_order(inputs[0]), *x = in_order(inputs[1]);
    float* out = allocate<float>(outputs[0]);
    dispatch([gate, x, out, size = outputs[0].size()] {
      run_in_pieces(size, 1, kAlone / 4, [&](int64_t first, int64_t last) {
        path().swiglu(gate + first, x + first, out + first, last - first);
      });
    });
  }
};

class Weigh : public OnCpu {
 public:
  const char* name() const override { return "HeadraceWeigh"; }
  bool is_equivalent(const Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const float *x = in_order(inputs[0]), *factors = in_order(inputs[1]);
    float* out = allocate<float>(outputs[0]);
    const int64_t size = inputs[0].shape(1), rows = inputs[0].shape(0);
    dispatch([x, factors, out, size, rows] {
      run_in_pieces(rows, size, kAlone / 4, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
          path().weigh(x + row * size, factors[row], out + row * size, size);
      });
    });
  }
};

class Gelu : public OnCpu {
 public:
  explicit Gelu(bool by_tanh) : by_tanh_(by_tanh) {}
  const char* name() const override { return "HeadraceGelu"; }
  bool is_equivalent(const Primitive& other) const override {
    return by_tanh_ == static_cast<const Gelu&>(other).by_tanh_;
  }
  // Models call it within what they compile for any shape.
  std::vector<mx::Shape> output_shapes(const std::vector<mx::array>& inputs) override {
    return {inputs[0].shape()};
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const float* x = in_order(inputs[0]);
    float* out = allocate<float>(outputs[0]);
    dispatch([x, out, size = outputs[0].size(), by_tanh = by_tanh_] {
      run_in_pieces(size, 1, kAlone / 4, [&](int64_t first, int64_t last) {
        path().gelu(x + first, by_tanh, out + first, last - first);
      });
    });
  }

 private:
  bool by_tanh_;
};

class RmsNorm : public OnCpu {
 public:
  explicit RmsNorm(float eps) : eps_(eps) {}
  const char* name() const override { return "HeadraceRmsNorm"; }
  bool is_equivalent(const Primitive& other) const override {
    return eps_ == static_cast<const RmsNorm&>(other).eps_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const float *x = in_order(inputs[0]), *weight = in_order(inputs[1]);
    float* out = allocate<float>(outputs[0]);
    const int64_t size = inputs[0].shape(-1), rows = size ? inputs[0].size() / size : 0;
    dispatch([x, weight, out, size, rows, eps = eps_] {
      run_in_pieces(rows, size, kAlone / 2, [&](int64_t first, int64_t last) {
        for (int64_t row = first; row < last; ++row)
          path().rms_norm(x + row * size, weight, eps, out + row * size, size);
      });
    });
  }

 private:
  float eps_;
};

class Rotate : public OnCpu {
 public:
  Rotate(int turned, bool neighbours) : turned_(turned), neighbours_(neighbours) {}
  const char* name() const override { return "HeadraceRotate"; }
  bool is_equivalent(const Primitive& other) const override {
    const auto& same = static_cast<const Rotate&>(other);
    return turned_ == same.turned_ && neighbours_ == same.neighbours_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const float* x = in_order(inputs[0]);
    const float *cos = in_order(inputs[1]), *sin = in_order(inputs[2]);
    float* out = allocate<float>(outputs[0]);
    const auto& shape = inputs[0].shape();
    dispatch([x, cos, sin, out, rows = shape[0], heads = shape[1], tokens = int64_t(shape[2]),
              size = int64_t(shape[3]), turned = turned_, neighbours = neighbours_] {
      const int64_t lines = int64_t(rows) * heads * tokens;
      run_in_pieces(lines, size, kAlone / 4, [&](int64_t first, int64_t last) {
        for (int64_t line = first; line < last; ++line) {
          const int64_t angle = (line / tokens / heads * tokens + line % tokens) * size;
          path().rotate(x + line * size, cos + angle, sin + angle, neighbours, turned, size,
                        out + line * size);
        }
      });
    });
  }

 private:
  int turned_;
  bool neighbours_;
};

class Attend : public OnCpu {
 public:
  Attend(float scale, bool padded, bool branched)
      : scale_(scale), padded_(padded), branched_(branched) {}
  const char* name() const override { return "HeadraceAttend"; }
  bool is_equivalent(const Primitive& other) const override {
    const auto& same = static_cast<const Attend&>(other);
    return scale_ == same.scale_ && padded_ == same.padded_ && branched_ == same.branched_;
  }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    if (inputs[1].dtype() == mx::int16)
      run<int16_t>(inputs, outputs, path().attend_rounded);
    else
      run<float>(inputs, outputs, path().attend);
  }

 private:
  template <class Kept, class Function>
  void run(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs, Function attend) {
    const auto &queries = inputs[0], &keys = inputs[1], &values = inputs[2];
    Attention<Kept> a = {};
    a.rows = queries.shape(0), a.heads = queries.shape(1), a.tokens = queries.shape(2);
    a.key_heads = keys.shape(1), a.length = keys.shape(2);
    a.size = queries.shape(3), a.value_size = outputs[0].shape(3);
    a.queries = heads<float>(queries);
    a.keys = heads<Kept>(keys), a.values = heads<Kept>(values);
    if (padded_) a.padding = in_order(inputs[3]);
    if (branched_) a.recent = in_order(inputs.back());
    a.scale = scale_;
    a.out = allocate<float>(outputs[0]);
    dispatch([a, attend] {
      const int64_t pieces = (a.queries_each() + kQueries - 1) / kQueries;
      pool().run(a.rows * a.key_heads * pieces, [&](int task) {
        static thread_local std::vector<float> scores;
        scores.resize(kQueries * ((a.length + 15) / 16 * 16));
        const int64_t first = task % pieces * kQueries, head = task / pieces;
        attend(a, head / a.key_heads, head % a.key_heads, first,
               std::min(first + kQueries, a.queries_each()), scores.data());
      });
    });
  }

  // As it lies in a cache, with room between; or in order, where the last axis is in pieces.
  template <class Number>
  Heads<Number> heads(const mx::array& x) {
    if (x.strides(3) == 1) return {x.data<Number>(), {x.strides(0), x.strides(1), x.strides(2)}};
    const int64_t size = x.shape(3), tokens = x.shape(2) * size;
    return {in_order<Number>(x), {x.shape(1) * tokens, tokens, size}};
  }

  float scale_;
  bool padded_, branched_;
};

class RoundHeads : public OnCpu {
 public:
  const char* name() const override { return "HeadraceRoundHeads"; }
  bool is_equivalent(const Primitive&) const override { return true; }

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    const float* x = in_order(inputs[0]);
    int16_t* out = allocate<int16_t>(outputs[0]);
    const int64_t size = inputs[0].shape(-1), vectors = inputs[0].size() / size;
    dispatch([x, out, size, vectors] {
      run_in_pieces(vectors, size, kAlone, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i)
          path().round_head(x + i * size, out + i * (size + kScaleRoom), size);
      });
    });
  }
};

// Numbers of a head's vectors.
int head_size(const mx::array& x) {
  return x.shape(-1) - (x.dtype() == mx::int16 ? kScaleRoom : 0);
}

void check_heads(const mx::array& x, const std::string& name) {
  check(x.ndim() == 4, name + " is [rows, heads, tokens, size]");
  check(head_size(x) > 0 && head_size(x) % 16 == 0,
        name + " has a multiple of 16 numbers in a head");
}

}  // namespace

mx::array swiglu(const mx::array& gate, const mx::array& x) {
  check(gate.shape() == x.shape(), "gate and x are of one shape");
  check(gate.dtype() == mx::float32 && x.dtype() == mx::float32, "gate and x are float32");
  return mx::array(x.shape(), mx::float32, std::make_shared<SwiGlu>(), {gate, x});
}

mx::array weigh(const mx::array& x, const mx::array& factors) {
  check(x.dtype() == mx::float32 && factors.dtype() == mx::float32, "x and factors are float32");
  check(x.ndim() == 2 && x.shape(1) > 0, "x is [rows, numbers]");
  check(factors.size() == size_t(x.shape(0)), "factors has one for each row");
  return mx::array(x.shape(), mx::float32, std::make_shared<Weigh>(), {x, factors});
}

mx::array gelu(const mx::array& x, bool by_tanh) {
  check(x.dtype() == mx::float32, "x is float32");
  return mx::array(x.shape(), mx::float32, std::make_shared<Gelu>(by_tanh), {x});
}

mx::array rms_norm(const mx::array& x, const mx::array& weight, float eps) {
  check(x.dtype() == mx::float32 && weight.dtype() == mx::float32, "x and weight are float32");
  check(x.ndim() > 0 && weight.shape() == mx::Shape{x.shape(-1)},
        "weight has a number for each in the last axis of x");
  return mx::array(x.shape(), mx::float32, std::make_shared<RmsNorm>(eps), {x, weight});
}

mx::array rotate(const mx::array& x, const mx::array& cos, const mx::array& sin, int turned,
                 bool neighbours) {
  check(x.ndim() == 4, "x is [rows, heads, tokens, size]");
  const mx::Shape angles = {x.shape(0), 1, x.shape(2), x.shape(3)};
  check(cos.shape() == angles && sin.shape() == angles, "cos and sin are [rows, 1, tokens, size]");
  check(x.dtype() == mx::float32 && cos.dtype() == mx::float32 && sin.dtype() == mx::float32,
        "x, cos and sin are float32");
  check(0 <= turned && turned <= x.shape(3) && turned % 2 == 0, "whole pairs of a head are turned");
  return mx::array(x.shape(), mx::float32, std::make_shared<Rotate>(turned, neighbours),
                   {x, cos, sin});
}

mx::array round_heads(const mx::array& x) {
  check(x.dtype() == mx::float32, "x is float32");
  check(x.ndim() > 0 && x.shape(-1) > 0 && x.shape(-1) % 16 == 0,
        "x has a multiple of 16 numbers in a head");
  auto shape = x.shape();
  shape.back() += kScaleRoom;
  return mx::array(shape, mx::int16, std::make_shared<RoundHeads>(), {x});
}

mx::array attend(const mx::array& queries, const mx::array& keys, const mx::array& values,
                 float scale, const std::optional<mx::array>& padding,
                 const std::optional<mx::array>& recent) {
  check_heads(queries, "queries");
  check_heads(keys, "keys");
  check_heads(values, "values");
  check(queries.dtype() == mx::float32, "queries are float32");
  check(keys.dtype() == mx::float32 || keys.dtype() == mx::int16, "keys are float32 or int16");
  check(values.dtype() == keys.dtype(), "keys and values are of one type");
  const int rows = queries.shape(0), tokens = queries.shape(2), length = keys.shape(2);
  check(keys.shape(0) == rows && values.shape(0) == rows,
        "queries, keys and values have as many rows");
  check(head_size(keys) == queries.shape(3), "queries and keys are of one size");
  check(values.shape(1) == keys.shape(1) && values.shape(2) == length, "each key has a value");
  check(keys.shape(1) > 0 && queries.shape(1) % keys.shape(1) == 0,
        "queries have a multiple of the heads of keys");
  check(0 < tokens && tokens <= length, "queries are of the last tokens");
  std::vector<mx::array> inputs = {queries, keys, values};
  if (padding) {
    check(padding->size() == size_t(rows) * length, "padding is [rows, keys]");
    inputs.push_back(mx::astype(*padding, mx::float32, cpu()));
  }
  if (recent) {
    check(recent->shape() == mx::Shape{tokens, tokens}, "recent is [queries, queries]");
    inputs.push_back(mx::astype(*recent, mx::float32, cpu()));
  }
  auto shape = queries.shape();
  shape.back() = head_size(values);
  return mx::array(shape, mx::float32,
                   std::make_shared<Attend>(scale, padding.has_value(), recent.has_value()),
                   inputs);
}

}  // namespace headrace
