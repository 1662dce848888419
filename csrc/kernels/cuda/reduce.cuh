#pragma once
// Sums and maxima over groups of lanes, warps and blocks, in a fixed order.
#include "kernels/cuda/prim.cuh"

namespace atlas::kernels::cuda {

// Over the kLanes lanes of each aligned group; every lane gets the result.
template <int kLanes = kWarp>
__device__ __forceinline__ float group_sum(float value) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) value += shuffle_xor(value, lanes);
  return value;
}

template <int kLanes = kWarp>
__device__ __forceinline__ float group_max(float value) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    const float other = shuffle_xor(value, lanes);
    value = other > value ? other : value;
  }
  return value;
}

// Over kWarps neighbouring warps, whose first thread has threadIdx.x = first; `line` is kWarps
// floats of shared memory of theirs. All threads of the block call it, and every one gets the
// result of its warps.
template <int kWarps>
__device__ __forceinline__ float warps_sum(float value, float* line, int warp) {
  value = group_sum(value);
  __syncthreads();  // an earlier reduction's readers are done
  if (lane_id() == 0) line[warp] = value;
  __syncthreads();
  float total = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) total += line[i];
  return total;
}

template <int kWarps>
__device__ __forceinline__ float warps_max(float value, float* line, int warp) {
  value = group_max(value);
  __syncthreads();
  if (lane_id() == 0) line[warp] = value;
  __syncthreads();
  float most = line[0];
#pragma unroll
  for (int i = 1; i < kWarps; ++i) most = line[i] > most ? line[i] : most;
  return most;
}

}  // namespace atlas::kernels::cuda
