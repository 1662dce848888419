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

// The first kCount values, each summed over the warp, in fewer shuffles than one by one: a step
// halves what a lane still holds. A lane gets the sum of values[lane / (32 / kCount)].
template <int kCount, int kSize>
__device__ __forceinline__ float group_sums(float (&values)[kSize]) {
  if constexpr (kCount == 1) {
    return values[0];
  } else {
    constexpr int kHalf = kCount / 2, kLanes = kWarp / kSize * kHalf;
    const bool upper = (lane_id() & kLanes) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const float mine = upper ? values[i + kHalf] : values[i],
                  other = upper ? values[i] : values[i + kHalf];
      values[i] = mine + shuffle_xor(other, kLanes);
    }
    return group_sums<kHalf>(values);
  }
}

template <int kCount>
__device__ __forceinline__ float group_sums(float (&values)[kCount]) {
  return group_sum<kWarp / kCount>(group_sums<kCount, kCount>(values));
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
