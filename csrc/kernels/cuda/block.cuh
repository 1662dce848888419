#pragma once
// What a whole block does together on matrices of floats that lie anywhere, in shared or device
// memory: loops over elements and one matrix product. `product` ends with a barrier, so its result
// may be read; the loops do not.
#include <type_traits>

#include "kernels/cuda/reduce.cuh"

namespace atlas::kernels::cuda {

// Element (i, j) of a matrix is at[i * row + j * column].
struct View {
  const float* at;
  int row, column;
};

__host__ __device__ __forceinline__ View plain(const float* at, int ld) { return {at, ld, 1}; }
__host__ __device__ __forceinline__ View transposed(const float* at, int ld) { return {at, 1, ld}; }

__device__ __forceinline__ int block_threads() { return static_cast<int>(blockDim.x); }
__device__ __forceinline__ int thread_id() { return static_cast<int>(threadIdx.x); }

// use(i) for i < count.
template <class Use>
__device__ __forceinline__ void each(int count, const Use& use) {
  for (int i = thread_id(); i < count; i += block_threads()) use(i);
}

// use(i, j) for i < rows, j < columns; neighbouring threads have neighbouring j.
template <class Use>
__device__ __forceinline__ void each(int rows, int columns, const Use& use) {
  const unsigned width = static_cast<unsigned>(columns), threads = blockDim.x;
  const int down = static_cast<int>(threads / width), right = static_cast<int>(threads % width);
  int i = static_cast<int>(threadIdx.x / width), j = static_cast<int>(threadIdx.x % width);
  while (i < rows) {
    use(i, j);
    i += down;
    j += right;
    if (j >= columns) {
      j -= columns;
      ++i;
    }
  }
}

// The sum over the block, in a fixed order, for all threads; `line` has a float for each warp.
__device__ __forceinline__ float block_sum(float value, float* line) {
  value = group_sum(value);
  __syncthreads();  // an earlier sum's readers are done
  if (lane_id() == 0) line[thread_id() / kWarp] = value;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < block_threads() / kWarp; ++i) total += line[i];
  return total;
}

__device__ __forceinline__ float block_max(float value, float* line) {
  value = group_max(value);
  __syncthreads();
  if (lane_id() == 0) line[thread_id() / kWarp] = value;
  __syncthreads();
  float most = line[0];
  for (int i = 1; i < block_threads() / kWarp; ++i) most = line[i] > most ? line[i] : most;
  return most;
}

// How products multiply: floats as they are; rounded to tf32 on tensor cores; or there, too, but as
// a tf32 and the tf32 of what is left (three products, nearly as exact as floats).
enum class Arithmetic { simple, tf32, split_tf32 };

template <Arithmetic kArithmetic>
constexpr int kArithmeticCapability = kArithmetic == Arithmetic::simple ? 75 : 80;

// A warp's 16 x 32 results of a product.
constexpr int kTileRows = 16, kTileColumns = 32;

// One warp's tile as tensor cores hold it: four m16n8 results side by side. The pointers are the
// lane's first elements; lanes beyond the matrix point into it, and their results are not stored.
template <bool kSplit>
struct Tf32ProductTile {
  float sums[4][4] = {};
  const float *a0, *a1, *b[4];
  int depth_lane;

  __device__ __forceinline__ Tf32ProductTile(const View& a, const View& b_view, int first_row,
                                             int first_column, int m, int n) {
    const int g = lane_id() / 4;
    depth_lane = lane_id() % 4;
    a0 = a.at + min(first_row + g, m - 1) * a.row;
    a1 = a.at + min(first_row + g + 8, m - 1) * a.row;
#pragma unroll
    for (int j = 0; j < 4; ++j)
      b[j] = b_view.at + min(first_column + 8 * j + g, n - 1) * b_view.column;
  }

  // The eight of depth from k; those from `depth` on count as zero.
  template <bool kWhole>
  __device__ __forceinline__ void step(const View& a, const View& b_view, const float* factor,
                                       int k, int depth) {
    const int near = k + depth_lane, far = near + 4;
    const bool has_near = kWhole || near < depth, has_far = kWhole || far < depth;
    float left[4] = {}, right[4][2] = {};
    const float near_factor = factor != nullptr && has_near ? factor[near] : 1.0f;
    const float far_factor = factor != nullptr && has_far ? factor[far] : 1.0f;
    if (has_near) {
      left[0] = a0[near * a.column];
      left[1] = a1[near * a.column];
#pragma unroll
      for (int j = 0; j < 4; ++j) right[j][0] = b[j][near * b_view.row] * near_factor;
    }
    if (has_far) {
      left[2] = a0[far * a.column];
      left[3] = a1[far * a.column];
#pragma unroll
      for (int j = 0; j < 4; ++j) right[j][1] = b[j][far * b_view.row] * far_factor;
    }
    uint32_t high[4], low[4];
    split(high, low, left);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t b_high[2], b_low[2];
      split(b_high, b_low, right[j]);
      if constexpr (kSplit) {
        mma_tf32_16x8x8(sums[j], low, b_high);
        mma_tf32_16x8x8(sums[j], high, b_low);
      }
      mma_tf32_16x8x8(sums[j], high, b_high);
    }
  }

  template <int kCount>
  __device__ static __forceinline__ void split(uint32_t (&high)[kCount], uint32_t (&low)[kCount],
                                               const float (&x)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      high[i] = to_tf32(x[i]);
      if constexpr (kSplit) low[i] = to_tf32(x[i] - bits_to_float(high[i]));
    }
  }

  static constexpr int kDepth = 8;

  template <class Use>
  __device__ __forceinline__ void visit(const Use& use) {
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        use(lane_id() / 4 + i / 2 * 8, 8 * j + lane_id() % 4 * 2 + i % 2, sums[j][i]);
  }
};

// A lane has four rows four apart, and of the 32 columns four eight apart.
struct SimpleProductTile {
  float sums[4][4] = {};
  const float *a[4], *b[4];

  __device__ __forceinline__ SimpleProductTile(const View& a_view, const View& b_view,
                                               int first_row, int first_column, int m, int n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      a[i] = a_view.at + min(first_row + lane_id() / 8 + 4 * i, m - 1) * a_view.row;
      b[i] = b_view.at + min(first_column + lane_id() % 8 + 8 * i, n - 1) * b_view.column;
    }
  }

  template <bool kWhole>
  __device__ __forceinline__ void step(const View& a_view, const View& b_view, const float* factor,
                                       int k, int) {
    float left[4];
    const float by = factor != nullptr ? factor[k] : 1.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) left[i] = a[i][k * a_view.column] * by;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float right = b[j][k * b_view.row];
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i][j] += left[i] * right;
    }
  }

  static constexpr int kDepth = 1;

  template <class Use>
  __device__ __forceinline__ void visit(const Use& use) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) use(lane_id() / 8 + 4 * i, lane_id() % 8 + 8 * j, sums[i][j]);
  }
};

// c [m, n] = beta c + alpha row_factor_i sum_k a_ik depth_factor_k b_kj; a factor that is null is
// 1, and with beta = 0 c is not read. c is none of the operands.
template <Arithmetic kArithmetic>
__device__ ATLAS_SHARED_CODE void block_product(View a, View b, const float* depth_factor,
                                                const float* row_factor, float* c, int ld, int m,
                                                int n, int depth, float alpha, float beta) {
  using Tile = std::conditional_t<kArithmetic == Arithmetic::simple, SimpleProductTile,
                                  Tf32ProductTile<kArithmetic == Arithmetic::split_tf32>>;
  const int across = (n + kTileColumns - 1) / kTileColumns,
            tiles = (m + kTileRows - 1) / kTileRows * across;
  for (int tile = thread_id() / kWarp; tile < tiles; tile += block_threads() / kWarp) {
    const int first_row = static_cast<int>(static_cast<unsigned>(tile) / across) * kTileRows,
              first_column = static_cast<int>(static_cast<unsigned>(tile) % across) * kTileColumns;
    Tile work(a, b, first_row, first_column, m, n);
    int k = 0;
#pragma unroll 1
    for (; k + Tile::kDepth <= depth; k += Tile::kDepth)
      work.template step<true>(a, b, depth_factor, k, depth);
    if (k < depth) work.template step<false>(a, b, depth_factor, k, depth);
    work.visit([&](int i, int j, float sum) {
      i += first_row;
      j += first_column;
      if (i >= m || j >= n) return;
      float* const at = c + i * ld + j;
      float value = alpha * sum;
      if (row_factor != nullptr) value *= row_factor[i];
      if (beta != 0) value += beta * *at;
      *at = value;
    });
  }
  __syncthreads();
}

// Options of a product beside its operands.
struct Scaling {
  float alpha = 1, beta = 0;
  const float* depth = nullptr;  // factors along the depth
  const float* row = nullptr;    // factors of the result's rows
};

template <Arithmetic kArithmetic>
__device__ __forceinline__ void product(float* c, int ld, int m, int n, int depth, const View& a,
                                        const View& b, const Scaling& scaling = Scaling()) {
  block_product<kArithmetic>(a, b, scaling.depth, scaling.row, c, ld, m, n, depth, scaling.alpha,
                             scaling.beta);
}

}  // namespace atlas::kernels::cuda
