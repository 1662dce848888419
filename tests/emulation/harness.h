// Checks that print and count, and device memory for the emulator's tests.
#pragma once
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/emulation/settings.h"
#include "kernels/cuda/emulation/trace.h"

namespace harness {

inline int failures = 0;

inline void that(bool ok, const std::string& text) {
  if (ok) return;
  if (++failures <= 20) std::printf("failed: %s\n", text.c_str());
}

struct Mode {
  const char* order;
  unsigned seed;
  const char* copies;

  void set() const {
    atlas::emulation::set_order(order, seed);
    atlas::emulation::set_copies(copies);
  }
  std::string name() const {
    return std::string(order) + " " + std::to_string(seed) + ", cp.async " + copies;
  }
};

inline const std::vector<Mode>& modes() {
  static const std::vector<Mode> all = {
      {"forward", 1, "early"}, {"forward", 1, "late"},   {"reverse", 1, "early"},
      {"reverse", 1, "late"},  {"random", 1, "early"},   {"random", 2, "late"},
      {"random", 3, "random"}, {"forward", 1, "random"}, {"random", 4, "random"}};
  return all;
}

inline std::vector<float> normal(size_t n, unsigned seed) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(n);
  for (float& value : values) value = distribution(engine);
  return values;
}

// Memory of kernels, named in traces while the object lives.
template <class T>
class Buffer {
 public:
  Buffer(std::vector<T> values, const char* dtype, const char* name, bool undefined = false)
      : values_(std::move(values)) {
    using atlas::emulation::Use;
    atlas::emulation::register_buffer(values_.data(), values_.size() * sizeof(T), dtype, name,
                                      undefined ? Use::written : Use::read);
  }
  ~Buffer() { atlas::emulation::forget_buffers(); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return values_.data(); }
  T& operator[](size_t i) { return values_[i]; }
  size_t size() const { return values_.size(); }

 private:
  std::vector<T> values_;
};

}  // namespace harness
