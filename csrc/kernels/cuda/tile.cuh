#pragma once
// Products of matrices in shared memory, one warp making 16 rows of the result at a time, in one
// interface for every arithmetic:
//
//   HalfTile<bf16|f16>  16-bit operands on tensor cores, float sums (f16: sm_75, bf16: sm_80)
//   Tf32Tile            float operands rounded to tf32 on tensor cores, float sums (sm_80)
//   FloatTile           float multiply-adds
//
// Tile::kCapability is the least that a device needs. Tile::Element is what shared memory holds. A
// leading dimension is the width plus Tile::kPad: then rows start on 16 bytes, and the eight rows
// that ldmatrix reads at once lie in different banks; of the float tiles' loads some take two
// passes (docs/cuda.md). Depths are multiples of 16 (pad with zeros); all lanes of the warp take
// part.
//
// Rows<kCols>: the warp's 16 x kCols results, spread over its lanes; visit(use) calls
// use(row, column, v0, v1) for each pair of neighbouring columns that the lane holds.
#include <type_traits>

#include "kernels/cuda/prim.cuh"

namespace atlas::kernels::cuda {

// The results of m16n8 instructions, kCols / 8 of them side by side.
template <int kCols>
struct MmaRows {
  float v[kCols / 8][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < kCols / 8; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) v[j][i] = 0;
  }

  template <class Use>
  __device__ __forceinline__ void visit(const Use& use) {
    const int row = lane_id() / 4, column = lane_id() % 4 * 2;
#pragma unroll
    for (int j = 0; j < kCols / 8; ++j) {
      use(row, 8 * j + column, v[j][0], v[j][1]);
      use(row + 8, 8 * j + column, v[j][2], v[j][3]);
    }
  }
};

template <class T>
struct HalfTile {
  using Element = T;
  static constexpr int kPad = 8;
  static constexpr int kCapability = std::is_same_v<T, f16> ? 75 : 80;
  template <int kCols>
  using Rows = MmaRows<kCols>;

  __device__ static __forceinline__ float load(T x) { return to_float(x); }
  __device__ static __forceinline__ T store(float x) { return from_float<T>(x); }
  __device__ static __forceinline__ void store2(T* at, float v0, float v1) {
    *reinterpret_cast<uint32_t*>(at) = pack2<T>(v0, v1);
  }

  // rows += op(A) B. A [16, depth] at a, or with kTransposed its transpose [depth, 16] at a;
  // B [depth, kCols].
  template <bool kTransposed, int kCols>
  __device__ static __forceinline__ void multiply(MmaRows<kCols>& rows, const T* a, int lda,
                                                  const T* b, int ldb, int depth) {
    const int in = lane_id() % 8, matrix = lane_id() / 8;
    const T* a_row = kTransposed ? a + (matrix / 2 * 8 + in) * lda + matrix % 2 * 8
                                 : a + (matrix % 2 * 8 + in) * lda + matrix / 2 * 8;
    const T* b_row = b + (matrix % 2 * 8 + in) * ldb + matrix / 2 * 8;
#pragma unroll 1  // more would spill in the backward
    for (int k = 0; k < depth; k += 16) {
      uint32_t fragment[4];
      if constexpr (kTransposed)
        ldmatrix_x4_transposed(fragment, a_row + k * lda);
      else
        ldmatrix_x4(fragment, a_row + k);
#pragma unroll
      for (int j = 0; j < kCols / 16; ++j) {
        uint32_t columns[4];
        ldmatrix_x4_transposed(columns, b_row + k * ldb + 16 * j);
        const uint32_t left[2] = {columns[0], columns[1]}, right[2] = {columns[2], columns[3]};
        mma_16x8x16<T>(rows.v[2 * j], fragment, left);
        mma_16x8x16<T>(rows.v[2 * j + 1], fragment, right);
      }
    }
  }
};

// What the tiles of float elements share.
struct FloatElements {
  using Element = float;
  static constexpr int kPad = 4;

  __device__ static __forceinline__ float load(float x) { return x; }
  __device__ static __forceinline__ float store(float x) { return x; }
  __device__ static __forceinline__ void store2(float* at, float v0, float v1) {
    at[0] = v0;
    at[1] = v1;
  }
};

struct Tf32Tile : FloatElements {
  static constexpr int kCapability = 80;
  template <int kCols>
  using Rows = MmaRows<kCols>;

  template <bool kTransposed, int kCols>
  __device__ static __forceinline__ void multiply(MmaRows<kCols>& rows, const float* a, int lda,
                                                  const float* b, int ldb, int depth) {
    const int g = lane_id() / 4, c = lane_id() % 4;
    for (int k = 0; k < depth; k += 8) {
      uint32_t fragment[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = g + i % 2 * 8, at = k + c + i / 2 * 4;
        fragment[i] = to_tf32(kTransposed ? a[at * lda + row] : a[row * lda + at]);
      }
#pragma unroll
      for (int j = 0; j < kCols / 8; ++j) {
        const float* column = b + (k + c) * ldb + 8 * j + g;
        const uint32_t pair[2] = {to_tf32(column[0]), to_tf32(column[4 * ldb])};
        mma_tf32_16x8x8(rows.v[j], fragment, pair);
      }
    }
  }
};

// A lane has four neighbouring rows, and of every 16 columns two.
template <int kCols>
struct FloatRows {
  float v[kCols / 16][4][2];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int j = 0; j < kCols / 16; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) v[j][i][0] = v[j][i][1] = 0;
  }

  template <class Use>
  __device__ __forceinline__ void visit(const Use& use) {
    const int row = lane_id() / 8 * 4, column = lane_id() % 8 * 2;
#pragma unroll
    for (int j = 0; j < kCols / 16; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i) use(row + i, 16 * j + column, v[j][i][0], v[j][i][1]);
  }
};

struct FloatTile : FloatElements {
  static constexpr int kCapability = 75;
  template <int kCols>
  using Rows = FloatRows<kCols>;

  template <bool kTransposed, int kCols>
  __device__ static __forceinline__ void multiply(FloatRows<kCols>& rows, const float* a, int lda,
                                                  const float* b, int ldb, int depth) {
    const int first = lane_id() / 8 * 4, column = lane_id() % 8 * 2;
#pragma unroll 2  // more would spill at 128 columns
    for (int k = 0; k < depth; ++k) {
      float left[4];
#pragma unroll
      for (int i = 0; i < 4; ++i)
        left[i] = kTransposed ? a[k * lda + first + i] : a[(first + i) * lda + k];
#pragma unroll
      for (int j = 0; j < kCols / 16; ++j) {
        const float* right = b + k * ldb + 16 * j + column;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          rows.v[j][i][0] += left[i] * right[0];
          rows.v[j][i][1] += left[i] * right[1];
        }
      }
    }
  }
};

}  // namespace atlas::kernels::cuda
