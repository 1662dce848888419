#pragma once
// From tensors to what the CUDA kernels take.
#include <torch/csrc/stable/ops.h>

#include "kernels/cuda/launcher.h"
#include "ops/check.h"
#include "ops/cuda_context.h"

namespace atlas::ops {

inline kernels::cuda::Dtype cuda_dtype(const char* op, const char* argument, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return kernels::cuda::Dtype::f32;
    case ScalarType::BFloat16:
      return kernels::cuda::Dtype::bf16;
    case ScalarType::Half:
      return kernels::cuda::Dtype::f16;
    default:
      fail(op, argument, "float32, bfloat16 or float16 on CUDA (float64 runs on the CPU)",
           describe(tensor));
  }
}

// The float32 copy of a small tensor that kernels read, contiguous; itself where it is that
// already.
inline std::optional<Tensor> float_copy(const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return std::nullopt;
  return torch::stable::contiguous(torch::stable::to(*tensor, ScalarType::Float));
}

inline const float* read_floats(const CudaContext& cuda, const std::optional<Tensor>& tensor,
                                const char* name) {
  return tensor.has_value() ? static_cast<const float*>(cuda.read(*tensor, name)) : nullptr;
}

}  // namespace atlas::ops
