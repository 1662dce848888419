#pragma once
// From tensors to what the CPU kernels take: memory with a dtype, and torch's threads.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

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

// Uninitialised memory of the dtype of the sums, next to `like`.
inline Tensor scratch(const Tensor& like, int64_t elements) {
  return torch::stable::new_empty(like, {elements}, compute_type(like));
}

inline Tensor empty_like_shape(const Tensor& like, const std::vector<int64_t>& shape,
                               ScalarType type) {
  return torch::stable::new_empty(like, shape, type);
}

}  // namespace atlas::ops
