#pragma once
// From tensors to what the CPU kernels take: memory with a dtype, and torch's threads.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>

#include "kernels/cpu/array.h"
#include "kernels/cpu/parallel.h"
#include "ops/check.h"

namespace atlas::ops {

inline kernels::cpu::Dtype dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return kernels::cpu::Dtype::f64;
    case ScalarType::BFloat16:
      return kernels::cpu::Dtype::bf16;
    case ScalarType::Half:
      return kernels::cpu::Dtype::f16;
    default:
      return kernels::cpu::Dtype::f32;
  }
}

inline kernels::cpu::Array array(const Tensor& tensor) {
  return {tensor.const_data_ptr(), dtype_of(tensor)};
}

inline kernels::cpu::MutableArray mutable_array(const Tensor& tensor) {
  return {tensor.mutable_data_ptr(), dtype_of(tensor)};
}

inline kernels::cpu::ParallelFor torch_threads() {
  return kernels::cpu::ParallelFor(
      [](int64_t tasks, kernels::cpu::ParallelFor::Body call, const void* body) {
        torch::stable::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
          for (int64_t task = begin; task < end; ++task) call(body, task);
        });
      },
      torch::stable::get_num_threads());
}

// Uninitialised memory for a result. First touches of fresh small pages cost more than writing a
// large result does, so the system is asked for huge pages there; that is a hint, and its outcome
// does not matter.
inline Tensor new_result(const Tensor& like, const std::vector<int64_t>& shape, ScalarType type) {
  const Tensor out = torch::stable::new_empty(like, shape, type);
#ifdef __linux__
  constexpr uintptr_t huge = uintptr_t{2} << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(out.const_data_ptr());
  const uintptr_t end = begin + static_cast<uintptr_t>(out.numel()) * out.element_size();
  const uintptr_t first = (begin + huge - 1) / huge * huge, last = end / huge * huge;
  if (first + 4 * huge <= last)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
  return out;
}

// Uninitialised memory of the dtype of the sums, next to `like`.
inline Tensor scratch(const Tensor& like, int64_t elements) {
  return torch::stable::new_empty(like, {elements}, compute_type(like));
}

}  // namespace atlas::ops
