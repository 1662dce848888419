// Scratch memory of one task, dealt out in order; included by kernel bodies after isa_begin.h.
#pragma once
#include "kernels/cpu/simd.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// With a null base it only counts: the same code that deals memory out tells how much is needed.
template <class T>
class Arena {
 public:
  explicit Arena(T* base) : base_(base) {}

  T* take(int64_t elements) {
    T* start = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (elements + 15) / 16 * 16;
    return start;
  }

  int64_t used() const { return used_; }

 private:
  T* base_;
  int64_t used_ = 0;
};

}  // namespace atlas::kernels::cpu::ATLAS_ISA
