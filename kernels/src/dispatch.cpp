#include "dispatch.h"

#include <atomic>
#include <stdexcept>

#if defined(HEADRACE_X86)
#include <cpuid.h>
#elif defined(HEADRACE_ARM)
#include <sys/auxv.h>
#endif

namespace headrace {
namespace {

#ifdef HEADRACE_X86
// Asked for by hand, since not all compilers know the name. What the system saves of registers is
// the same as for AVX2.
bool has_avxvnni() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4);
}
#endif

std::vector<const Path*> found() {
  std::vector<const Path*> all;
#ifdef HEADRACE_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni"))
    all.push_back(&kAvx512Vnni);
  if (__builtin_cpu_supports("avx2") && has_avxvnni()) all.push_back(&kAvxVnni);
  if (__builtin_cpu_supports("avx2")) all.push_back(&kAvx2);
#endif
#ifdef HEADRACE_ARM
  if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) all.push_back(&kNeon);
#endif
  all.push_back(&kPortable);
  return all;
}

const std::vector<const Path*>& usable() {
  static const std::vector<const Path*> all = found();
  return all;
}

std::atomic<const Path*>& chosen() {
  static std::atomic<const Path*> one{usable().front()};
  return one;
}

}  // namespace

std::vector<std::string> paths() {
  std::vector<std::string> names;
  for (const Path* each : usable()) names.emplace_back(each->name);
  return names;
}

const Path& path() { return *chosen().load(std::memory_order_relaxed); }

void use(const std::string& name) {
  std::string names;
  for (const Path* each : usable()) {
    if (each->name == name) {
      chosen().store(each, std::memory_order_relaxed);
      return;
    }
    names += (names.empty() ? "" : ", ") + std::string(each->name);
  }
  throw std::invalid_argument("no path " + name + " on this CPU; there is " + names);
}

}  // namespace headrace
