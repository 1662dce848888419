#pragma once
// The one way to start a kernel: launch<kernel<T>>(grid, block, shared_bytes, stream,
// arguments...). Returns the launch's status, cudaSuccess for an empty grid, which is not launched.
#include "kernels/cuda/capabilities.h"
#include "kernels/cuda/platform.cuh"

#ifdef __CUDACC__

namespace atlas::kernels::cuda {

template <auto kKernel, class... Parameters, class... Arguments>
cudaError_t launch_typed(void (*)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                         cudaStream_t stream, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  const void* function = reinterpret_cast<const void*>(kKernel);
  if (shared_bytes > kOptInBeyond) {
    const cudaError_t status = cudaFuncSetAttribute(
        function, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (status != cudaSuccess) return status;
  }
  const auto start = [&](Parameters... parameters) {
    void* pointers[] = {&parameters...};
    return cudaLaunchKernel(function, grid, block, pointers, shared_bytes, stream);
  };
  return start(static_cast<Parameters>(arguments)...);
}

template <auto kKernel, class... Arguments>
cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
  return launch_typed<kKernel>(kKernel, grid, block, shared_bytes, stream, arguments...);
}

// Asks for as much shared memory as a multiprocessor can have, for several of the kernel's blocks;
// this stays with the kernel.
template <auto kKernel>
cudaError_t prefer_shared_memory() {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kKernel),
                              cudaFuncAttributePreferredSharedMemoryCarveout,
                              cudaSharedmemCarveoutMaxShared);
}

// What a launcher needs to know of the current device to choose a kernel.
struct Device {
  int capability;    // 10 * major + minor
  int shared_bytes;  // most that a block may opt in to
  int multiprocessors;
};

inline Device current_device() {
  int device = 0, major = 0, minor = 0;
  Device found{};
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  cudaDeviceGetAttribute(&found.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  found.capability = 10 * major + minor;
  return found;
}

}  // namespace atlas::kernels::cuda

#else

#include "kernels/cuda/emulation/launch.h"

#endif
