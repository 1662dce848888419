#include <cuda_runtime_api.h>

#include "kernels/cuda/device_info.h"

// nvcc defines __CUDA_ARCH_LIST__ as 750,800,900 from its -gencode flags: the list cannot go stale.
#define ATLAS_STRINGIFY_LIST(...) #__VA_ARGS__
#define ATLAS_STRINGIFY(...) ATLAS_STRINGIFY_LIST(__VA_ARGS__)

namespace atlas::kernels::cuda {

// Never launched: the driver says which of its compiled variants it would load.
__global__ void probe_kernel() {}

const char* compiled_architectures() { return ATLAS_STRINGIFY(__CUDA_ARCH_LIST__); }

int compiled_runtime_version() { return CUDART_VERSION; }

int code_architecture(int device) {
  int previous = 0;
  cudaFuncAttributes attributes{};
  bool found = cudaGetDevice(&previous) == cudaSuccess && cudaSetDevice(device) == cudaSuccess &&
               cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess;
  cudaSetDevice(previous);
  cudaGetLastError();  // a failed query must not surface in somebody else's next check
  return found ? attributes.binaryVersion : 0;
}

}  // namespace atlas::kernels::cuda
