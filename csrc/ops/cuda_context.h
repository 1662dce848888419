#pragma once
// The operators' only view of CUDA: the current device, its stream, the memory that launches use,
// launch errors, and where operators are registered. With ATLAS_EXT_EMULATED the device is the CPU.
//
//   CudaContext cuda(x);
//   check_launch(kernels::cuda::f({cuda.read(x, "x"), cuda.write(out, "out"), n}, cuda.stream()),
//                "f");
//   ATLAS_CUDA_LIBRARY_IMPL(library) { library.impl("f", TORCH_BOX(&f_cuda)); }

#ifdef ATLAS_EXT_EMULATED

#include "ops/cuda_context_emulated.h"

#else

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#define ATLAS_CUDA_LIBRARY_IMPL(library) STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CUDA, library)
// Of operators without tensors.
#define ATLAS_CUDA_LIBRARY_QUERIES(library) \
  STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CompositeExplicitAutograd, library)

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

  // Pointers for kernels. `write`: no kernel reads it before one has written it. `scratch`:
  // neither, and its contents have types of their own. The emulated twin records them for its
  // traces, under their names.
  const void* read(const torch::stable::Tensor& tensor, const char*) const {
    return tensor.const_data_ptr();
  }
  void* write(const torch::stable::Tensor& tensor, const char*) const {
    return tensor.mutable_data_ptr();
  }
  void* update(const torch::stable::Tensor& tensor, const char*) const {
    return tensor.mutable_data_ptr();
  }
  void* scratch(const torch::stable::Tensor& tensor, const char*) const {
    return tensor.mutable_data_ptr();
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

// Whether the tensor is where the kernels run.
inline bool is_on_device(const torch::stable::Tensor& tensor) { return tensor.is_cuda(); }

inline void clear_cuda_error() { cudaGetLastError(); }

}  // namespace atlas

#endif

namespace atlas {

// `status` is what a launcher of kernels/cuda returned, checked once, by the op that called it.
inline void check_launch(cudaError_t status, const char* op) {
  if (status != cudaSuccess) clear_cuda_error();  // it is reported here, and to nobody else
  STD_TORCH_CHECK(status == cudaSuccess, op, ": CUDA launch: wanted success, got ",
                  cudaGetErrorString(status));
}

}  // namespace atlas
