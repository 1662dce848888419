#pragma once
// The dialect that kernels are written in. nvcc compiles it for GPUs; g++ compiles the same sources
// against the emulation (emulation/device.h), where a CUDA thread is a fiber.
//
//   SHARED_ARRAY(T, name, n)   a static shared array, 16-byte aligned
//   DYNAMIC_SHARED(T, name)    T* name: the dynamic shared memory of the launch, 16-byte aligned
//
// A kernel is declared `ATLAS_KERNEL void name(...)`: external linkage and default visibility, so
// that its symbol is found, under the same name, in nvcc's PTX and in the emulated library.
#include <cstdint>

#define ATLAS_KERNEL __attribute__((visibility("default"))) __global__
// On a const struct parameter that is read by variable index: no copy of it in local memory.
#ifdef __CUDACC__
#define ATLAS_GRID_CONSTANT __grid_constant__
// A function that many places of a kernel call: one copy of its code.
#define ATLAS_SHARED_CODE __noinline__
#else
#define ATLAS_GRID_CONSTANT
#define ATLAS_SHARED_CODE __attribute__((noinline))
#endif

#ifdef __CUDACC__

#include <cuda_runtime.h>

#define SHARED_ARRAY(T, name, n) __shared__ __align__(16) T name[n]
#define DYNAMIC_SHARED(T, name)                                         \
  extern __shared__ __align__(16) unsigned char atlas_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(atlas_dynamic_shared)

#else

#include "kernels/cuda/emulation/device.h"

#endif

namespace atlas::kernels::cuda {

// The capability that this pass of the compiler makes code for; on the host and in the emulation
// that of every device.
#ifdef __CUDA_ARCH__
constexpr int kCompiledCapability = __CUDA_ARCH__ / 10;
#else
constexpr int kCompiledCapability = 1000;
#endif

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Storage of the 16-bit types: the same type, hence the same symbol names, under every compiler.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

// Sixteen bytes that are loaded and stored in one instruction.
struct alignas(16) Pack16 {
  uint32_t word[4];
};

}  // namespace atlas::kernels::cuda
