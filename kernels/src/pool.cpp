#include "pool.h"

#include <sched.h>

#include <algorithm>
#include <chrono>
#include <system_error>

namespace headrace {
namespace {

constexpr uint64_t kLow = 0xffffffff;
constexpr auto kPatience = std::chrono::microseconds(100);

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

int usable_cores() {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
  return std::max(int(std::thread::hardware_concurrency()), 1);
}

}  // namespace

Pool& pool() {
  // Never destroyed: a thread of MLX may still compute while the process ends.
  static Pool* const shared = [] {
    auto* made = new Pool;
    made->resize(usable_cores());
    return made;
  }();
  return *shared;
}

Pool::~Pool() { stop(); }

void Pool::resize(int threads) {
  std::lock_guard running(caller_);
  stop();
  threads_ = std::max(threads, 1);
}

void Pool::stop() {
  for (auto& helper : helpers_) helper.request_stop();
  {
    std::lock_guard lock(mutex_);
    work_.notify_all();
  }
  helpers_.clear();
}

void Pool::start(int threads) {
  // With the first work and not before: a process that forks before it computes loses none.
  try {
    while (int(helpers_.size()) < threads - 1)
      helpers_.emplace_back([this](std::stop_token stop) { help(stop); });
  } catch (const std::system_error&) {
    // The system has no more threads; those that are there do all of it.
  }
}

void Pool::run(int tasks, Task task, const void* context) {
  std::unique_lock caller(caller_, std::defer_lock);
  if (tasks <= 1 || threads() == 1 || !caller.try_lock()) {
    for (int i = 0; i < tasks; ++i) task(context, i);
    return;
  }
  start(threads());
  task_.store(task, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  const uint64_t run = (open_.load(std::memory_order_relaxed) >> 32) + 1;
  // In one order with `asleep_`: either a helper sees the work before it sleeps, or is woken.
  open_.store(run << 32 | uint32_t(tasks), std::memory_order_seq_cst);
  if (asleep_.load(std::memory_order_seq_cst) > 0) {
    std::lock_guard lock(mutex_);
    work_.notify_all();
  }
  while (take()) {
  }
  for (int turns = 0; done_.load(std::memory_order_acquire) < tasks; ++turns) {
    if (turns < 1000)
      pause();
    else
      std::this_thread::yield();
  }
}

bool Pool::take() {
  uint64_t open = open_.load(std::memory_order_acquire);
  while (open & kLow) {
    const Task task = task_.load(std::memory_order_relaxed);
    const void* const context = context_.load(std::memory_order_relaxed);
    // If it is still the same, the run is not over, and so task and context are its own.
    if (open_.compare_exchange_weak(open, open - 1, std::memory_order_acq_rel,
                                    std::memory_order_acquire)) {
      task(context, int(open & kLow) - 1);
      done_.fetch_add(1, std::memory_order_release);
      return true;
    }
  }
  return false;
}

void Pool::help(std::stop_token stop) {
  using Clock = std::chrono::steady_clock;
  while (!stop.stop_requested()) {
    const auto until = Clock::now() + kPatience;
    bool worked = false;
    while (!worked && Clock::now() < until) {
      worked = take();
      for (int i = 0; i < 16 && !worked; ++i) pause();
    }
    if (worked) continue;
    std::unique_lock lock(mutex_);
    asleep_.fetch_add(1, std::memory_order_seq_cst);
    work_.wait(lock, [&] {
      return stop.stop_requested() || (open_.load(std::memory_order_seq_cst) & kLow);
    });
    asleep_.fetch_sub(1, std::memory_order_relaxed);
  }
}

}  // namespace headrace
