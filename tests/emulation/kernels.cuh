// Correct kernels, one for each group of primitives. nvcc compiles them as well (kernels.cu).
#pragma once
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/prim.cuh"

namespace kernels_under_test {

using namespace atlas::kernels::cuda;

constexpr int kTile = 64, kDepth = 32, kTileThreads = 128;
constexpr int kRowA = kDepth + 8, kRowB = kTile + 8;  // padded against bank conflicts
constexpr int kStageElements = kTile * kRowA + kDepth * kRowB;

__device__ __forceinline__ void load_stage(bf16* stage, const bf16* a, const bf16* b, int first,
                                           int depth) {
  bf16* const stage_b = stage + kTile * kRowA;
  for (int i = threadIdx.x; i < kTile * kDepth / 8; i += kTileThreads) {
    const int row = i / (kDepth / 8), column = i % (kDepth / 8) * 8;
    cp_async16(stage + row * kRowA + column, a + row * depth + first + column);
  }
  for (int i = threadIdx.x; i < kDepth * kTile / 8; i += kTileThreads) {
    const int row = i / (kTile / 8), column = i % (kTile / 8) * 8;
    const bool valid = first + row < depth;
    cp_async16(stage_b + row * kRowB + column, b + (first + row) * kTile + column, valid);
  }
}

// c [64, 64] = a [64, depth] b [depth, 64]; two stages of 32 in shared memory. A warp has 16 rows.
// With kPending > 1 or without kBarrier it is wrong: see bugs.cuh.
template <class T, int kPending, bool kBarrier>
ATLAS_KERNEL void __launch_bounds__(kTileThreads)
    tile_product_kernel(const bf16* a, const bf16* b, float* c, int depth) {
  DYNAMIC_SHARED(bf16, shared);
  const int lane = lane_id(), warp = threadIdx.x / kWarp, chunks = depth / kDepth;
  float sums[kTile / 8][4] = {};
  load_stage(shared, a, b, 0, depth);
  cp_async_commit();
  for (int chunk = 0; chunk < chunks; ++chunk) {
    if (chunk + 1 < chunks)
      load_stage(shared + (chunk + 1) % 2 * kStageElements, a, b, (chunk + 1) * kDepth, depth);
    cp_async_commit();
    cp_async_wait<kPending>();
    __syncthreads();
    const bf16* const stage_a = shared + chunk % 2 * kStageElements;
    const bf16* const stage_b = stage_a + kTile * kRowA;
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t rows[4];
      ldmatrix_x4(rows, stage_a + (16 * warp + lane % 16) * kRowA + k + lane / 16 * 8);
      for (int n = 0; n < kTile; n += 16) {
        uint32_t columns[4];
        ldmatrix_x4_transposed(columns, stage_b + (k + lane % 16) * kRowB + n + lane / 16 * 8);
        const uint32_t left[2] = {columns[0], columns[1]}, right[2] = {columns[2], columns[3]};
        mma_16x8x16<T>(sums[n / 8], rows, left);
        mma_16x8x16<T>(sums[n / 8 + 1], rows, right);
      }
    }
    if (kBarrier) __syncthreads();  // the next turn's copies overwrite what was read
  }
  const int row = 16 * warp + lane / 4;
  for (int n = 0; n < kTile / 8; ++n)
    for (int i = 0; i < 4; ++i)
      c[(row + i / 2 * 8) * kTile + n * 8 + lane % 4 * 2 + i % 2] = sums[n][i];
}

// c [16, 8] = a [16, depth] b [depth, 8] in tf32, by one warp.
ATLAS_KERNEL void tf32_product_kernel(const float* a, const float* b, float* c, int depth) {
  const int g = lane_id() / 4, q = lane_id() % 4;
  float sums[4] = {};
  for (int k = 0; k < depth; k += 8) {
    uint32_t left[4], right[2];
    for (int i = 0; i < 4; ++i) left[i] = to_tf32(a[(g + i % 2 * 8) * depth + k + q + i / 2 * 4]);
    for (int i = 0; i < 2; ++i) right[i] = to_tf32(b[(k + q + i * 4) * 8 + g]);
    mma_tf32_16x8x8(sums, left, right);
  }
  for (int i = 0; i < 4; ++i) c[(g + i / 2 * 8) * 8 + q * 2 + i % 2] = sums[i];
}

// Sums of each block's x, by shuffles, shared memory and an atomic.
ATLAS_KERNEL void block_sum_kernel(const float* x, float* out, int n) {
  SHARED_ARRAY(float, parts, 32);
  float sum = 0;
  for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < static_cast<unsigned>(n);
       i += gridDim.x * blockDim.x)
    sum += x[i];
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
  if (lane_id() == 0) parts[threadIdx.x / kWarp] = sum;
  __syncthreads();
  if (threadIdx.x >= kWarp) return;
  sum = threadIdx.x < blockDim.x / kWarp ? parts[threadIdx.x] : 0.0f;
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
  if (threadIdx.x == 0) atomicAdd(out, sum);
}

// out[i]: the votes that lane i sees, among lanes of its parity; then the value of the last of
// them.
ATLAS_KERNEL void halves_kernel(const int* x, unsigned* votes, int* last) {
  const int lane = lane_id();
  const unsigned even = 0x55555555u;
  if (lane % 2 == 0) {
    votes[lane] = ballot(x[lane] > 0, even);
    last[lane] = shuffle(x[lane], 30, even);
  } else {
    votes[lane] = ballot(x[lane] > 0, ~even);
    last[lane] = shuffle(x[lane], 31, ~even);
  }
}

// Each lane passes its value on through shared memory, `turns` times.
ATLAS_KERNEL void ring_kernel(const double* x, double* out, int turns) {
  SHARED_ARRAY(double, ring, kWarp);
  const int lane = lane_id();
  double value = x[lane];
  for (int turn = 0; turn < turns; ++turn) {
    ring[lane] = value;
    sync_warp();
    value = ring[(lane + 1) % kWarp];
    sync_warp();
  }
  out[lane] = shuffle_xor(value, 1);
}

// x rounded to each type and back.
ATLAS_KERNEL void round_kernel(const float* x, float* as_bf16, float* as_f16, float* as_tf32,
                               int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  as_bf16[i] = to_float(from_float<bf16>(x[i]));
  as_f16[i] = to_float(f16{static_cast<uint16_t>(pack2<f16>(0.0f, x[i]) >> 16)});
  as_tf32[i] = bits_to_float(to_tf32(x[i]));
}

}  // namespace kernels_under_test
