#pragma once
#include <cstdint>

namespace atlas::kernels::cpu {

// A parallel-for handed down by the caller: kernels start no threads of their own. Plain function
// pointers, because a std::function instantiated inside an ISA-specific translation unit would be
// merged with the baseline copy.
class ParallelFor {
 public:
  using Body = void (*)(const void* body, int64_t task);
  using Runner = void (*)(int64_t tasks, Body call, const void* body);

  ParallelFor(Runner runner, int64_t threads) : runner_(runner), threads_(threads) {}

  int64_t threads() const { return threads_; }

  // Number of tasks `items` independent items are dealt to, each with scratch memory of its own.
  int64_t tasks(int64_t items) const { return items < threads_ ? items : threads_; }

  // Calls body(task) for every task in [0, tasks), in parallel.
  template <class F>
  void operator()(int64_t tasks, const F& body) const {
    runner_(tasks, [](const void* f, int64_t task) { (*static_cast<const F*>(f))(task); }, &body);
  }

 private:
  Runner runner_;
  int64_t threads_;
};

}  // namespace atlas::kernels::cpu
