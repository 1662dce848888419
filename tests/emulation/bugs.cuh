// Planted bugs: each must be found by the modes that claim to find it, or the checks check nothing.
#pragma once
#include "kernels.cuh"

namespace bugs {

using namespace atlas::kernels::cuda;
using kernels_under_test::kStageElements;
using kernels_under_test::kTile;
using kernels_under_test::kTileThreads;
using kernels_under_test::tile_product_kernel;

// ---- races: wrong values in some orders, ThreadSanitizer in every order

ATLAS_KERNEL void missing_barrier_kernel(const float* x, float* out) {
  SHARED_ARRAY(float, tile, 128);
  tile[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

// With 46 KiB of dynamic shared memory more than a launch may have without opting in.
ATLAS_KERNEL void wide_static_kernel(const float* x, float* out) {
  SHARED_ARRAY(float, tile, 1024);
  tile[threadIdx.x] = x[threadIdx.x];
  out[threadIdx.x] = tile[threadIdx.x];
}

ATLAS_KERNEL void missing_sync_warp_kernel(const float* x, float* out) {
  SHARED_ARRAY(float, tile, kWarp);
  tile[lane_id()] = x[threadIdx.x];
  out[threadIdx.x] = tile[lane_id() ^ 1];
}

// A shuffle makes lanes meet, but puts no memory in order.
ATLAS_KERNEL void shuffle_is_no_sync_kernel(const float* x, float* out) {
  SHARED_ARRAY(float, tile, kWarp);
  tile[lane_id()] = x[threadIdx.x];
  const float sum = shuffle_xor(x[threadIdx.x], 1);
  out[threadIdx.x] = tile[lane_id() ^ 1] + 0 * sum;
}

// Every block adds its share to out[0] as if it were alone.
ATLAS_KERNEL void cross_block_kernel(const float* x, float* out) {
  if (threadIdx.x == 0)
    out[blockIdx.x] = x[blockIdx.x] + (blockIdx.x > 0 ? out[blockIdx.x - 1] : 0);
}

// ---- memory

ATLAS_KERNEL void shared_write_past_end_kernel(const float* x, float* out) {
  SHARED_ARRAY(float, tile, 32);
  tile[threadIdx.x + 1] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x];
}

ATLAS_KERNEL void shared_read_past_end_kernel(const float* x, float* out) {
  DYNAMIC_SHARED(float, tile);
  tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[threadIdx.x + 1];
}

ATLAS_KERNEL void global_out_of_bounds_kernel(const float* x, float* out) {
  out[threadIdx.x] = x[threadIdx.x + 4096];
}

ATLAS_KERNEL void uninitialised_shared_kernel(const float* x, float* out) {
  SHARED_ARRAY(float, tile, 128);
  if (threadIdx.x != 3) tile[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[blockDim.x - 1 - threadIdx.x];
}

// ---- barriers and warps

ATLAS_KERNEL void divergent_barrier_kernel(const float* x, float* out) {
  if (threadIdx.x < kWarp) {
    out[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
  } else {
    __syncthreads();
    out[threadIdx.x] = x[threadIdx.x];
  }
}

ATLAS_KERNEL void skipped_barrier_kernel(const float* x, float* out) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  out[threadIdx.x] = x[threadIdx.x];
}

ATLAS_KERNEL void deadlock_kernel(const float* x, float* out) {
  if (lane_id() < 16)
    __syncthreads();
  else
    sync_warp();
  out[threadIdx.x] = x[threadIdx.x];
}

ATLAS_KERNEL void mask_mismatch_kernel(const float* x, float* out) {
  const unsigned mask = lane_id() < 16 ? kAllLanes : 0xffff0000u;
  out[threadIdx.x] = shuffle_xor(x[threadIdx.x], 1, mask);
}

ATLAS_KERNEL void foreign_mask_kernel(const float* x, float* out) {
  sync_warp(0x0000ffffu);
  out[threadIdx.x] = x[threadIdx.x];
}

ATLAS_KERNEL void absent_source_kernel(const float* x, float* out) {
  if (lane_id() < 16) out[threadIdx.x] = shuffle(x[threadIdx.x], 20, 0x0000ffffu);
}

ATLAS_KERNEL void exited_lane_kernel(const float* x, float* out) {
  if (lane_id() == 7) return;
  out[threadIdx.x] = shuffle_xor(x[threadIdx.x], 1);
}

ATLAS_KERNEL void divergent_shuffle_kernel(const float* x, float* out) {
  if (lane_id() < 16)
    out[threadIdx.x] = shuffle_xor(x[threadIdx.x], 1);
  else
    out[threadIdx.x] = shuffle_xor(x[threadIdx.x], 2);
}

// ---- asynchronous copies: 32 threads, 16 bytes each

enum class CopyBug { no_commit, no_wait, misaligned, no_barrier };

template <CopyBug kBug>
ATLAS_KERNEL void copy_kernel(const float* x, float* out) {
  SHARED_ARRAY(float, tile, 4 * kWarp + 4);
  const int shift = kBug == CopyBug::misaligned ? 1 : 0;
  cp_async16(tile + 4 * threadIdx.x + shift, x + 4 * threadIdx.x);
  if (kBug != CopyBug::no_commit) cp_async_commit();
  if (kBug != CopyBug::no_wait) cp_async_wait<0>();
  if (kBug != CopyBug::no_barrier) __syncthreads();
  for (int i = 0; i < 4; ++i) out[i * kWarp + threadIdx.x] = tile[i * kWarp + threadIdx.x];
}

}  // namespace bugs
