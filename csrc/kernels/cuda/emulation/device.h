#pragma once
// CUDA's language for g++: what platform.cuh needs when nvcc is not the compiler.
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "kernels/cuda/emulation/site.h"
#include "kernels/cuda/emulation/thread.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

#define threadIdx (::atlas::emulation::current_thread->thread_index)
#define blockIdx (::atlas::emulation::current_thread->block_index)
#define blockDim (::atlas::emulation::current_thread->block_extent)
#define gridDim (::atlas::emulation::current_thread->grid_extent)

// Each instantiation of a function has arrays of its own, as in CUDA: the static names them.
#define SHARED_ARRAY(T, name, n)        \
  static char name##_declared_here = 0; \
  auto& name = ::atlas::emulation::typed_array<T, (n)>(&name##_declared_here, #name)
#define DYNAMIC_SHARED(T, name) \
  T* const name = static_cast<T*>(::atlas::emulation::dynamic_shared())

namespace atlas::emulation {

template <class T, size_t kCount>
T (&typed_array(const void* key, const char* name, Site site = Site::here()))
[kCount] { return *static_cast<T(*)[kCount]>(shared_array(key, sizeof(T) * kCount, name, site)); }

template <class To, class From>
To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Atomics order memory here (acquire and release), more than CUDA's do.
template <class Bits, class T, class Change>
T atomic_change(T* address, Change change) {
  auto* bits = reinterpret_cast<Bits*>(address);
  Bits old = __atomic_load_n(bits, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(bits, &old, same_bits<Bits>(change(same_bits<T>(old))), false,
                                      __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)) {
  }
  return same_bits<T>(old);
}

}  // namespace atlas::emulation

// ---- the runtime API, as far as launchers use it

using cudaStream_t = struct CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorInvalidConfiguration = 9 };

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    default:
      return "invalid configuration argument";
  }
}

// ---- device functions

inline void __syncthreads(atlas::emulation::Site site = atlas::emulation::Site::here()) {
  atlas::emulation::barrier(site);
}

[[noreturn]] inline void __trap(atlas::emulation::Site site = atlas::emulation::Site::here()) {
  atlas::emulation::fail(site, "__trap()");
}

inline void __threadfence() {}  // atomics are fences here

inline float atomicAdd(float* address, float value) {
  return atlas::emulation::atomic_change<uint32_t>(address, [=](float x) { return x + value; });
}
inline double atomicAdd(double* address, double value) {
  return atlas::emulation::atomic_change<uint64_t>(address, [=](double x) { return x + value; });
}
inline int atomicAdd(int* address, int value) {
  return __atomic_fetch_add(address, value, __ATOMIC_ACQ_REL);
}
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return __atomic_fetch_add(address, value, __ATOMIC_ACQ_REL);
}

inline unsigned __float_as_uint(float x) { return atlas::emulation::same_bits<unsigned>(x); }
inline int __float_as_int(float x) { return atlas::emulation::same_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return atlas::emulation::same_bits<float>(x); }
inline float __int_as_float(int x) { return atlas::emulation::same_bits<float>(x); }

inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
#if !defined(__GLIBC_PREREQ) || !__GLIBC_PREREQ(2, 42)  // later ones have the C23 functions
inline float rsqrtf(float x) { return static_cast<float>(1 / sqrt(static_cast<double>(x))); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
#endif

template <class T>
inline T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }

// As in CUDA, min and max of floats ignore a NaN.
template <class T>
constexpr T min(T x, T y) {
  return y < x ? y : x;
}
template <class T>
constexpr T max(T x, T y) {
  return x < y ? y : x;
}
inline float min(float x, float y) { return fminf(x, y); }
inline float max(float x, float y) { return fmaxf(x, y); }
inline double min(double x, double y) { return fmin(x, y); }
inline double max(double x, double y) { return fmax(x, y); }
