#pragma once

// The operators' only view of CUDA: the current device, its stream, and launch errors.

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace atlas {

// Makes `tensor`'s device current for its lifetime and names that device's current stream.
class CudaContext {
 public:
  explicit CudaContext(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// `status` is what a launcher of kernels/cuda returned, checked once, by the op that called it.
inline void check_launch(cudaError_t status, const char* op) {
  STD_TORCH_CHECK(status == cudaSuccess, op, ": CUDA launch: wanted success, got ",
                  cudaGetErrorString(status));
}

}  // namespace atlas
