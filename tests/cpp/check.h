// What every CTest program shares: checks that print and count, a parallel-for, the ISA guard.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <random>
#include <thread>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"

namespace check {

inline int failures = 0;

inline void that(bool ok, const char* text, const char* file, int line) {
  if (ok) return;
  if (++failures <= 20) std::printf("%s:%d: failed: %s\n", file, line, text);
}

inline void close(double got, double wanted, double tolerance, const char* file, int line) {
  if (std::abs(got - wanted) <= tolerance * (1.0 + std::abs(wanted))) return;
  if (++failures <= 20) std::printf("%s:%d: wanted %.17g, got %.17g\n", file, line, wanted, got);
}

template <class T>
std::vector<T> normal(int64_t n, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> distribution;
  std::vector<T> values(n);
  for (T& value : values) value = static_cast<T>(distribution(engine));
  return values;
}

// Two tasks really run at once, so that tasks sharing scratch memory by mistake are seen.
inline atlas::kernels::cpu::ParallelFor two_threads() {
  using Body = atlas::kernels::cpu::ParallelFor::Body;
  return {[](int64_t tasks, Body call, const void* body) {
            std::vector<std::thread> threads;
            for (int64_t task = 0; task < tasks; ++task)
              threads.emplace_back([=] { call(body, task); });
            for (std::thread& thread : threads) thread.join();
          },
          2};
}

// Runs `test` under the instruction set that ATLAS_EXT_CPU_ISA names; 77 (skipped) without it.
inline int run(void (*test)()) {
  try {
    atlas::kernels::cpu::isa();
  } catch (const std::exception& error) {
    std::printf("skipped: %s\n", error.what());
    return 77;
  }
  test();
  std::printf("%s\n", failures ? "FAILED" : "passed");
  return failures ? 1 : 0;
}

}  // namespace check

#define CHECK(condition) ::check::that((condition), #condition, __FILE__, __LINE__)
#define CHECK_CLOSE(got, wanted, tolerance) \
  ::check::close((got), (wanted), (tolerance), __FILE__, __LINE__)
