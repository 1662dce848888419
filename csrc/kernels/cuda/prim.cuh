#pragma once
// Every PTX instruction and warp intrinsic that kernels use, behind functions. The emulated twin
// with the same signatures is emulation/prim.h; nothing else in this folder may contain inline asm.
//
// Fragments of mma.sync.m16n8k16 (16-bit operands) and m16n8k8 (tf32), as in the PTX manual, with
// g = lane / 4 and c = lane % 4:
//   A (16-bit)  a[0]: row g,   k 2c, 2c+1      a[1]: row g+8, k 2c, 2c+1
//               a[2]: row g,   k 2c+8, 2c+9    a[3]: row g+8, k 2c+8, 2c+9
//   B (16-bit)  b[0]: k 2c, 2c+1, column g     b[1]: k 2c+8, 2c+9, column g
//   A (tf32)    a[0]: row g, k c   a[1]: row g+8, k c   a[2]: row g, k c+4   a[3]: row g+8, k c+4
//   B (tf32)    b[0]: k c, column g            b[1]: k c+4, column g
//   C           c[0], c[1]: row g, columns 2c, 2c+1      c[2], c[3]: row g+8
#include "kernels/cuda/platform.cuh"

#ifdef __CUDACC__

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace atlas::kernels::cuda {

__device__ __forceinline__ int lane_id() { return threadIdx.x % kWarp; }

// The same, read again at each call: what is computed from it does not wait in registers for the
// next use.
__device__ __forceinline__ int fresh_lane_id() {
  unsigned lane;
  asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
  return static_cast<int>(lane % kWarp);
}

// ---- warps: all lanes of the mask take part

__device__ __forceinline__ void sync_warp(unsigned mask = kAllLanes) { __syncwarp(mask); }

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int lanes, unsigned mask = kAllLanes) {
  return __shfl_xor_sync(mask, value, lanes);
}

template <class T>
__device__ __forceinline__ T shuffle(T value, int lane, unsigned mask = kAllLanes) {
  return __shfl_sync(mask, value, lane);
}

__device__ __forceinline__ unsigned ballot(bool predicate, unsigned mask = kAllLanes) {
  return __ballot_sync(mask, predicate);
}

// ---- conversions, round to nearest even

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_float(f16 x) { return __half2float(__ushort_as_half(x.bits)); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) {
  return x;
}
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}
template <>
__device__ __forceinline__ f16 from_float<f16>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}

// Two values in one register, the first one in the low half.
template <class T>
__device__ __forceinline__ uint32_t pack2(float low, float high) {
  return static_cast<uint32_t>(from_float<T>(low).bits) |
         static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

// The tf32 value nearest to x, as mma.sync takes it.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#if __CUDA_ARCH__ >= 800
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
#else
  return __float_as_uint(x);
#endif
}

__device__ __forceinline__ float bits_to_float(uint32_t x) { return __uint_as_float(x); }
__device__ __forceinline__ uint32_t float_to_bits(float x) { return __float_as_uint(x); }

// The square root to about one unit in the last place, without the call that exact rounding takes.
__device__ __forceinline__ float square_root(float x) {
  float y;
  asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// 1 / x to about one unit in the last place, x and 1 / x normal numbers.
__device__ __forceinline__ float reciprocal(float x) {
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float exponential(float x) { return expf(x); }
__device__ __forceinline__ float logarithm(float x) { return logf(x); }
__device__ __forceinline__ float error_function(float x) { return erff(x); }

// ---- a number that blocks share; nothing else is put in order

__device__ __forceinline__ int64_t atomic_load(const int64_t* address) {
  int64_t value;
  asm volatile("ld.relaxed.gpu.s64 %0, [%1];" : "=l"(value) : "l"(address) : "memory");
  return value;
}

// What was there before.
__device__ __forceinline__ int64_t atomic_add(int64_t* address, int64_t value) {
  using Bits = unsigned long long;
  return static_cast<int64_t>(
      atomicAdd(reinterpret_cast<Bits*>(address), static_cast<Bits>(value)));
}

__device__ __forceinline__ void atomic_or(int64_t* address, int64_t bits) {
  using Bits = unsigned long long;
  atomicOr(reinterpret_cast<Bits*>(address), static_cast<Bits>(bits));
}

// ---- asynchronous copies from global to shared memory (sm_80 and up)

// 16 bytes; both pointers are 16-byte aligned. Without `valid` the destination is zeroed and the
// source is not read.
__device__ __forceinline__ void cp_async16(void* shared, const void* global, bool valid = true) {
#if __CUDA_ARCH__ >= 800
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(global), "r"(bytes)
               : "memory");
#else
  *static_cast<Pack16*>(shared) = valid ? *static_cast<const Pack16*>(global) : Pack16{};
#endif
}

__device__ __forceinline__ void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}

// Waits until at most kPending of this thread's committed groups are under way. Other threads see
// the data after a barrier.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
#endif
}

// ---- tensor cores

// Four 8x8 matrices of 16-bit elements; lane l names the 16-byte row l % 8 of matrix l / 8.
// Register i of a lane then holds elements 2c, 2c+1 of row g of matrix i; transposed: of column g.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&out)[4], const void* shared_row) {
  const unsigned row = static_cast<unsigned>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&out)[4], const void* shared_row) {
  const unsigned row = static_cast<unsigned>(__cvta_generic_to_shared(shared_row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
}

// c += a b with float sums. T: bf16 (sm_80 and up) or f16; 16x8x16.
template <class T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4],
                                            const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_16x8x16<bf16>(float (&c)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();  // launchers choose another kernel below sm_80
#endif
}

template <>
__device__ __forceinline__ void mma_16x8x16<f16>(float (&c)[4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  // sm_75 has half the depth: the k of a[0], a[1], b[0] first, then that of a[2], a[3], b[1].
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[2]), "r"(a[3]), "r"(b[1]));
#endif
}

// c += a b for tf32 operands (sm_80 and up), 16x8x8.
__device__ __forceinline__ void mma_tf32_16x8x8(float (&c)[4], const uint32_t (&a)[4],
                                                const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

}  // namespace atlas::kernels::cuda

#else

#include "kernels/cuda/emulation/prim.h"

#endif
