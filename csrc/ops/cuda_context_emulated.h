#pragma once
// The twin of CudaContext for emulated kernels, which run on CPU tensors.
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <memory>

#include "kernels/cuda/emulation/graph.h"
#include "kernels/cuda/emulation/trace.h"
#include "ops/check.h"

#define ATLAS_CUDA_LIBRARY_IMPL(library) STABLE_TORCH_LIBRARY_IMPL(atlas_ext_emulated, CPU, library)
// Of operators without tensors.
#define ATLAS_CUDA_LIBRARY_QUERIES(library) \
  STABLE_TORCH_LIBRARY_IMPL(atlas_ext_emulated, CompositeExplicitAutograd, library)

namespace atlas {

class CudaContext {
 public:
  explicit CudaContext(const torch::stable::Tensor&) {}
  ~CudaContext() { emulation::forget_buffers(); }
  CudaContext(const CudaContext&) = delete;
  CudaContext& operator=(const CudaContext&) = delete;

  cudaStream_t stream() const { return nullptr; }

  const void* read(const torch::stable::Tensor& tensor, const char* name) const {
    record(tensor, name, emulation::Use::read);
    return tensor.const_data_ptr();
  }
  void* write(const torch::stable::Tensor& tensor, const char* name) const {
    record(tensor, name, emulation::Use::written);
    return tensor.mutable_data_ptr();
  }
  void* update(const torch::stable::Tensor& tensor, const char* name) const {
    record(tensor, name, emulation::Use::read);
    return tensor.mutable_data_ptr();
  }
  void* scratch(const torch::stable::Tensor& tensor, const char* name) const {
    record(tensor, name, emulation::Use::scratch);
    return tensor.mutable_data_ptr();
  }

 private:
  // For traces; of a strided tensor, all from its first to its last element. A graph that is
  // captured keeps the memory.
  static void record(const torch::stable::Tensor& tensor, const char* name, emulation::Use use) {
    if (tensor.numel() == 0) return;
    if (emulation::Graph* const graph = emulation::capturing())
      graph->hold(std::make_shared<torch::stable::Tensor>(tensor));
    size_t elements = 1;
    for (int64_t i = 0; i < tensor.dim(); ++i)
      elements += static_cast<size_t>((tensor.size(i) - 1) * tensor.stride(i));
    emulation::register_buffer(tensor.const_data_ptr(), elements * tensor.element_size(),
                               ops::dtype_name(tensor.scalar_type()).c_str(), name, use);
  }
};

inline bool is_on_device(const torch::stable::Tensor& tensor) { return tensor.is_cpu(); }

inline void clear_cuda_error() {}

}  // namespace atlas
