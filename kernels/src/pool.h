// The threads that share the work of a primitive.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace headrace {

// Runs tasks on the calling thread and on helpers of its own.
//
// Tasks are taken one by one, so that a thread whose core is busy elsewhere takes fewer, and none
// waits for a helper that has not begun. A helper looks for more work for a moment before it
// sleeps: within a step of a model one product soon follows another.
class Pool {
 public:
  using Task = void (*)(const void* context, int task);

  ~Pool();

  // Threads in all, the caller's included; at least 1.
  void resize(int threads);
  int threads() const { return threads_.load(std::memory_order_relaxed); }

  // Runs task(context, i) for all i below `tasks`, and returns when all are done. Where another
  // thread is at it, the caller does its own work alone. Tasks must not throw.
  void run(int tasks, Task task, const void* context);

  template <class F>
  void run(int tasks, const F& function) {
    run(
        tasks, [](const void* context, int task) { (*static_cast<const F*>(context))(task); },
        &function);
  }

 private:
  void help(std::stop_token stop);
  bool take();
  void start(int threads);
  void stop();

  // How many tasks nobody has taken yet, in the low half; a count of runs above it, so that a
  // helper that was away cannot mistake one run for another. While the low half is 0, nobody but a
  // caller of `run` looks at what follows.
  std::atomic<uint64_t> open_{0};
  std::atomic<Task> task_{nullptr};
  std::atomic<const void*> context_{nullptr};
  std::atomic<int> done_{0};

  std::mutex caller_;  // Held by who runs tasks.
  std::mutex mutex_;
  std::condition_variable work_;
  std::atomic<int> asleep_{0};
  std::atomic<int> threads_{1};
  std::vector<std::jthread> helpers_;
};

// That of the process, as large as the cores it may use.
Pool& pool();

// function(first, last) for all of `count` in pieces, by whoever is free: each of so many things
// that they come to `worth` numbers, where each has `size`.
template <class F>
void run_in_pieces(int64_t count, int64_t size, int64_t worth, const F& function) {
  const int64_t each = std::max<int64_t>(worth / std::max<int64_t>(size, 1), 1);
  pool().run((count + each - 1) / each,
             [&](int piece) { function(piece * each, std::min((piece + 1) * each, count)); });
}

}  // namespace headrace
