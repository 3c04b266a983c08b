// Computes random problems, hard ones among them, by each path that works on this CPU, and compares
// the results to the bit. A NaN is as good as another: which of two operands' it is differs between
// compilers.
//
//     agree [rounds] [seed]
//
// Prints the paths, and what the results come to, which is the same on any kind of CPU. Ends with 1
// at the first difference.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "dispatch.h"
#include "packing.h"

#ifdef HEADRACE_X86
namespace headrace {
extern const Path kAvxVnniByEvex;
}
#endif

namespace {

using namespace headrace;
using Floats = std::vector<float>;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// The same numbers on any CPU; the standard library's distributions are not.
class Source {
 public:
  explicit Source(uint64_t seed) : engine_(seed) {}

  int64_t below(int64_t end) { return int64_t(engine_() % uint64_t(end)); }
  int64_t between(int64_t first, int64_t last) { return first + below(last - first + 1); }
  // From -1 to 1.
  float number() { return float(below(1 << 25) - (1 << 24)) * 0x1p-24f; }
  uint8_t byte() { return uint8_t(engine_()); }
  template <class T>
  T one_of(std::initializer_list<T> all) {
    return all.begin()[below(int64_t(all.size()))];
  }

  // Numbers of one kind, or of several.
  Floats numbers(int64_t count) {
    const float size = one_of({1.0f, 1.0f, 1e-3f, 30.0f, 1e-36f, 1e-40f, 1e30f});
    const int kind = int(below(6));
    Floats all(count);
    for (auto& each : all) {
      each = number() * size;
      if (kind == 1) each = each > 0 ? size : -size;  // The largest sums there are.
      if (kind == 2 && below(37) == 0) each = number() * size * 1e6f;
      if (kind == 3 && below(3) == 0) each = one_of({0.0f, -0.0f});
      if (kind == 4 && below(900) == 0) each = one_of({kNaN, kInf, -kInf});
    }
    return all;
  }

 private:
  std::mt19937_64 engine_;
};

// Everything that one path gave.
struct Results {
  Floats numbers;

  float* room(int64_t count) {
    numbers.resize(numbers.size() + count);
    return numbers.data() + numbers.size() - count;
  }
};

bool same(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b) || (a != a && b != b);
}

// A problem, which is made once and computed by each path.
class Problem {
 public:
  virtual ~Problem() = default;
  virtual std::string says() const = 0;
  virtual void compute(const Path& path, Results& results) const = 0;
};

class Multiply : public Problem {
 public:
  explicit Multiply(Source& source) {
    product_.format = {source.one_of({4, 8}), source.one_of({32, 64, 128}),
                       source.one_of({Scale::f32, Scale::f16, Scale::bf16})};
    product_.inputs = product_.format.group * source.between(1, 5);
    product_.outputs = source.between(1, 70);
    product_.rows = source.between(1, 20);
    x_ = source.numbers(product_.rows * product_.inputs);
    const Format& format = product_.format;
    const int64_t groups = product_.outputs * product_.inputs / format.group;
    std::vector<uint8_t> weights(product_.outputs * product_.inputs * format.bits / 8);
    const bool all = source.below(8) == 0;
    for (auto& each : weights) each = all ? 0xff : source.byte();
    const auto scales = halves(source, groups), biases = halves(source, groups);
    const Matrix matrix = {weights.data(), scales.data(), biases.data(), product_.inputs,
                           product_.outputs};
    packed_.resize(kHeader + blocks_of(product_.outputs) * format.block_bytes(product_.inputs));
    uint8_t* blocks = begin_packed(packed_.data());
    for (int64_t block = 0; block < blocks_of(product_.outputs); ++block)
      pack_block(format, matrix, block, blocks + block * format.block_bytes(product_.inputs));
  }

  std::string says() const override {
    const auto text = [](int64_t number) { return std::to_string(number); };
    return "a product of " + text(product_.rows) + " rows, " + text(product_.inputs) + " inputs, " +
           text(product_.outputs) + " outputs, " + text(product_.format.bits) +
           " bits in groups of " + text(product_.format.group) + ", scales of type " +
           text(int(product_.format.scale));
  }

  void compute(const Path& path, Results& results) const override {
    Product product = product_;
    const int64_t rows = product.rows, inputs = product.inputs, chunks = inputs / kChunk;
    std::vector<int8_t> rounded(rows * inputs);
    Floats scales(rows * chunks), sums(rows * chunks);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t first = row / path.tile * path.tile;
      const int step = int(std::min<int64_t>(path.tile, rows - first));
      path.round(x_.data() + row * inputs, inputs, step,
                 rounded.data() + first * inputs + 4 * (row - first),
                 scales.data() + first * chunks + (row - first),
                 sums.data() + first * chunks + (row - first));
    }
    product.weights = blocks_in(packed_.data());
    product.x = rounded.data();
    product.scales = scales.data();
    product.sums = sums.data();
    product.out = results.room(rows * product.outputs);
    path.multiply(product, 0, blocks_of(product.outputs), 0, rows);
    // Not the path's own, but the same on all CPUs too.
    for (int64_t output = 0; output < product.outputs; ++output)
      unpack_row(product.format, product.weights, inputs, output, results.room(inputs));
  }

 private:
  // Scales or biases in the format's type; by their bits, so that all kinds of them are there.
  std::vector<uint8_t> halves(Source& source, int64_t count) {
    const bool wide = product_.format.scale == Scale::f32;
    std::vector<uint8_t> bytes(count * (wide ? 4 : 2));
    const bool any = source.below(6) == 0;
    for (int64_t i = 0; i < count; ++i) {
      uint32_t bits = std::bit_cast<uint32_t>(source.number());
      if (!wide) bits = product_.format.scale == Scale::bf16 ? bits >> 16 : half(bits);
      if (any) bits = uint32_t(source.below(int64_t(1) << 32));
      std::memcpy(&bytes[i * (wide ? 4 : 2)], &bits, wide ? 4 : 2);
    }
    return bytes;
  }

  // A number from -1 to 1 in half precision; those that are too small are 0.
  static uint32_t half(uint32_t bits) {
    const uint32_t exponent = bits >> 23 & 255, sign = bits >> 16 & 0x8000;
    return exponent < 113 ? sign : sign | (exponent - 112) << 10 | (bits >> 13 & 1023);
  }

  Product product_ = {};
  Floats x_;
  std::vector<uint8_t> packed_;
};

class OfRows : public Problem {
 public:
  explicit OfRows(Source& source) {
    size_ = source.between(1, 300);
    turned_ = 2 * source.between(0, size_ / 2);
    for (auto& each : x_) each = source.numbers(size_);
  }

  std::string says() const override {
    return "a row of " + std::to_string(size_) + ", " + std::to_string(turned_) + " turned";
  }

  void compute(const Path& path, Results& results) const override {
    path.swiglu(x_[0].data(), x_[1].data(), results.room(size_), size_);
    for (bool by_tanh : {false, true}) path.gelu(x_[0].data(), by_tanh, results.room(size_), size_);
    path.weigh(x_[0].data(), 1.5f, results.room(size_), size_);
    path.rms_norm(x_[0].data(), x_[1].data(), 1e-5f, results.room(size_), size_);
    path.rms_norm(x_[0].data(), nullptr, 0, results.room(size_), size_);
    for (bool neighbours : {false, true})
      path.rotate(x_[0].data(), x_[1].data(), x_[2].data(), neighbours, turned_, size_,
                  results.room(size_));
  }

 private:
  int64_t size_, turned_;
  Floats x_[3];
};

class Attend : public Problem {
 public:
  explicit Attend(Source& source) {
    a_.rows = 1;
    a_.key_heads = source.between(1, 2);
    a_.heads = a_.key_heads * source.between(1, 3);
    a_.tokens = source.between(1, 6);
    a_.length = a_.tokens + source.between(0, 70);
    a_.size = 16 * source.between(1, 5);
    a_.value_size = 16 * source.between(1, 9);
    a_.scale = source.one_of({0.125f, 1.0f});
    queries_ = source.numbers(a_.heads * a_.tokens * a_.size);
    keys_ = source.numbers(a_.key_heads * a_.length * a_.size);
    values_ = source.numbers(a_.key_heads * a_.length * a_.value_size);
    if (source.below(2)) {
      padding_.assign(a_.length, 0);
      const int64_t none = source.between(0, a_.length - a_.tokens);
      for (int64_t i = 0; i < none; ++i) padding_[i] = -kInf;
    }
    if (source.below(2)) {
      recent_.assign(a_.tokens * a_.tokens, 0);
      for (int64_t i = 0; i < int64_t(recent_.size()); ++i)
        if (i % (a_.tokens + 1) && source.below(2)) recent_[i] = -kInf;
    }
  }

  std::string says() const override {
    return "attention of " + std::to_string(a_.tokens) + " queries to " +
           std::to_string(a_.length) + " keys of " + std::to_string(a_.size);
  }

  void compute(const Path& path, Results& results) const override {
    compute(keys_, values_, path.attend, results);
    const auto keys = rounded(path, keys_, a_.size, results);
    const auto values = rounded(path, values_, a_.value_size, results);
    compute(keys, values, path.attend_rounded, results);
  }

 private:
  template <class Kept, class Function>
  void compute(const std::vector<Kept>& keys, const std::vector<Kept>& values, Function attend,
               Results& results) const {
    Attention<Kept> a = {a_, {}, {}};
    a.queries = {queries_.data(), {0, a.tokens * a.size, a.size}};
    const int64_t more = sizeof(Kept) == sizeof(float) ? 0 : kScaleRoom;
    const int64_t key = a.size + more, value = a.value_size + more;
    a.keys = {keys.data(), {0, a.length * key, key}};
    a.values = {values.data(), {0, a.length * value, value}};
    a.padding = padding_.empty() ? nullptr : padding_.data();
    a.recent = recent_.empty() ? nullptr : recent_.data();
    a.out = results.room(a.heads * a.tokens * a.value_size);
    Floats scores(kQueries * ((a.length + 15) / 16 * 16));
    for (int64_t head = 0; head < a.key_heads; ++head)
      for (int64_t first = 0; first < a.queries_each(); first += kQueries)
        attend(a, 0, head, first, std::min<int64_t>(first + kQueries, a.queries_each()),
               scores.data());
  }

  // Each vector rounded, and all its numbers as results.
  static std::vector<int16_t> rounded(const Path& path, const Floats& x, int64_t size,
                                      Results& results) {
    const int64_t step = size + kScaleRoom, count = int64_t(x.size()) / size;
    std::vector<int16_t> all(count * step);
    for (int64_t i = 0; i < count; ++i) {
      int16_t* to = all.data() + i * step;
      path.round_head(x.data() + i * size, to, size);
      float* numbers = results.room(size + 1);
      std::copy(to, to + size, numbers);
      std::memcpy(numbers + size, to + size, sizeof(float));
    }
    return all;
  }

  AnyAttention a_ = {};
  Floats queries_, keys_, values_, padding_, recent_;
};

std::vector<const Path*> usable() {
  std::vector<const Path*> all;
  for (const auto& name : paths()) {
    use(name);
    all.push_back(&path());
  }
#ifdef HEADRACE_X86
  if (__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
    all.push_back(&kAvxVnniByEvex);
#endif
  return all;
}

// Computes by each path and adds what all of them give to the digest. Says where they differ.
bool agree(const Problem& problem, const std::vector<const Path*>& paths, uint64_t& digest) {
  Results expected;
  problem.compute(*paths.front(), expected);
  for (const Path* path : paths) {
    Results found;
    problem.compute(*path, found);
    for (size_t i = 0; i < found.numbers.size(); ++i) {
      const float a = expected.numbers[i], b = found.numbers[i];
      if (same(a, b)) continue;
      std::printf("%s: number %zu is %a by %s and %a by %s\n", problem.says().c_str(), i, a,
                  paths.front()->name, b, path->name);
      return false;
    }
  }
  for (float each : expected.numbers)  // FNV-1a, of words.
    digest = (digest ^ (each == each ? std::bit_cast<uint32_t>(each) : 0x7fc00000)) *
             uint64_t(0x100000001b3);
  return true;
}

}  // namespace

int main(int count, char** words) {
  const long rounds = count > 1 ? std::atol(words[1]) : 1000;
  const uint64_t seed = count > 2 ? std::strtoull(words[2], nullptr, 10) : 0;
  const auto paths = usable();
  std::printf("paths:");
  for (const Path* path : paths)
    std::printf(" %s%s", path->name, path == paths.back() ? "\n" : ",");
  Source source(seed);
  uint64_t digests[3] = {};
  for (long round = 0; round < rounds; ++round) {
    if (!agree(Multiply(source), paths, digests[0])) return 1;
    if (!agree(OfRows(source), paths, digests[1])) return 1;
    if (!agree(Attend(source), paths, digests[2])) return 1;
  }
  std::printf("products %016llx, rows %016llx, attention %016llx\n", (unsigned long long)digests[0],
              (unsigned long long)digests[1], (unsigned long long)digests[2]);
}
