#pragma once
// Products of matrices in shared memory, one warp making 16 rows of the result at a time, in one
// interface for every arithmetic:
//
//   HalfTile<bf16|f16>  16-bit operands on tensor cores, float sums (f16: sm_75, bf16: sm_80)
//   Tf32Tile            float operands rounded to tf32 on tensor cores, float sums (sm_80)
//   FloatTile           float multiply-adds
//
// Tile::kCapability is the least that a device needs. Tile::Element is what shared memory holds.
// Widths are multiples of 16, above 16 of 32; a leading dimension is the width plus Tile::kPad.
// Element (row, column) is at Tile::at(row, column, ld), sixteen aligned bytes of a row stay
// together, and no access of a tile has bank conflicts (docs/cuda.md). A pointer may be moved by 8
// rows, not by columns. Depths are multiples of 16 (pad with zeros); all lanes of the warp take
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
    const int lane = fresh_lane_id(), row = lane / 4, column = lane % 4 * 2;
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

  __host__ __device__ static __forceinline__ constexpr int at(int row, int column, int ld) {
    return row * ld + column;
  }
  __device__ static __forceinline__ float load(T x) { return to_float(x); }
  __device__ static __forceinline__ T store(float x) { return from_float<T>(x); }
  __device__ static __forceinline__ void load2(const T* from, float& v0, float& v1) {
    const uint32_t both = *reinterpret_cast<const uint32_t*>(from);
    v0 = to_float(T{static_cast<uint16_t>(both & 0xffffu)});
    v1 = to_float(T{static_cast<uint16_t>(both >> 16)});
  }
  __device__ static __forceinline__ void store2(T* to, float v0, float v1) {
    *reinterpret_cast<uint32_t*>(to) = pack2<T>(v0, v1);
  }

  // rows += op(A) B. A [16, depth]: the rows of a from `first` on, or with kTransposed its columns;
  // B [depth, kCols].
  template <bool kTransposed, int kCols>
  __device__ static __forceinline__ void multiply(MmaRows<kCols>& rows, const T* a, int lda,
                                                  int first, const T* b, int ldb, int depth) {
    const int lane = fresh_lane_id(), in = lane % 8, matrix = lane / 8;
    const T* a_row = a + (kTransposed ? at(matrix / 2 * 8 + in, first + matrix % 2 * 8, lda)
                                      : at(first + matrix % 2 * 8 + in, matrix / 2 * 8, lda));
    const T* b_row = b + at(matrix % 2 * 8 + in, matrix / 2 * 8, ldb);
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

// What the tiles of float elements share. Without padding the rows begin in one or two banks; so
// the eights of a row are exchanged, by an order that comes again after eight rows. In a matrix 16
// wide two rows make one of 32 and change places too.
struct FloatElements {
  using Element = float;
  static constexpr int kPad = 0;

  __host__ __device__ static __forceinline__ constexpr int order(int row) {
    return (row & 2) << 3 | ((row ^ row >> 2) & 1) << 3;
  }
  __host__ __device__ static __forceinline__ constexpr int at(int row, int column, int ld) {
    return (row * ld + column) ^ order(row);
  }
  __device__ static __forceinline__ float load(float x) { return x; }
  __device__ static __forceinline__ float store(float x) { return x; }
  __device__ static __forceinline__ void load2(const float* from, float& v0, float& v1) {
    const Pair pair = load_pair(from);
    v0 = pair.first;
    v1 = pair.second;
  }
  __device__ static __forceinline__ void store2(float* to, float v0, float v1) {
    *reinterpret_cast<Pair*>(to) = {v0, v1};
  }

 protected:
  struct alignas(8) Pair {
    float first, second;
  };
  __device__ static __forceinline__ Pair load_pair(const float* at) {
    return *reinterpret_cast<const Pair*>(at);
  }
};

// The k of an instruction are taken in another order, the same for both operands: in pairs, so that
// a lane has neighbours of A's row, and rows of B in different banks.
struct Tf32Tile : FloatElements {
  static constexpr int kCapability = 80;
  template <int kCols>
  using Rows = MmaRows<kCols>;

  template <bool kTransposed, int kCols>
  __device__ static __forceinline__ void multiply(MmaRows<kCols>& rows, const float* a, int lda,
                                                  int first, const float* b, int ldb, int depth) {
    static_assert(kCols == 16 || kCols % 32 == 0);
    constexpr int kEights = kCols < 32 ? kCols / 8 : 4;
    const int lane = fresh_lane_id(), g = lane / 4, c = lane % 4 * 2;
    int even[kEights], odd[kEights];
#pragma unroll
    for (int j = 0; j < kEights; ++j) even[j] = at(c, 8 * j + g, ldb);
#pragma unroll
    for (int j = 0; j < kEights; ++j)
      odd[j] = ldb % 32 == 0 ? even[j ^ 1] + ldb : at(c + 1, 8 * j + g, ldb);
#pragma unroll 1
    for (int k = 0; k < depth; k += 8) {
      uint32_t fragment[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if constexpr (kTransposed) {
          fragment[i] = to_tf32(a[k * lda + at(c, first + g + 8 * i, lda)]);
          fragment[i + 2] = to_tf32(a[k * lda + at(c + 1, first + g + 8 * i, lda)]);
        } else {
          const Pair pair = load_pair(a + at(first + g, k + c, lda) + 8 * i * lda);
          fragment[i] = to_tf32(pair.first);
          fragment[i + 2] = to_tf32(pair.second);
        }
      }
      const float* eight_rows = b + k * ldb;
#pragma unroll
      for (int j = 0; j < kCols / 8; ++j) {
        const uint32_t pair[2] = {to_tf32(eight_rows[even[j % kEights] + j / 4 * 32]),
                                  to_tf32(eight_rows[odd[j % kEights] + j / 4 * 32])};
        mma_tf32_16x8x8(rows.v[j], fragment, pair);
      }
    }
  }
};

// A lane has two neighbouring rows and those 8 below, and of every 16 columns two.
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
    const int lane = fresh_lane_id(), row = lane / 8 * 2, column = lane % 8 * 2;
#pragma unroll
    for (int j = 0; j < kCols / 16; ++j)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        use(row + i % 2 + i / 2 * 8, 16 * j + column, v[j][i][0], v[j][i][1]);
  }
};

struct FloatTile : FloatElements {
  static constexpr int kCapability = 75;
  template <int kCols>
  using Rows = FloatRows<kCols>;

  // Four k at a time: order(k + t) is order(t) ^ order(k), and order(k) is 0 or 8. So an index is a
  // constant, from t and j, plus one of the few terms `along` or `across`.
  template <bool kTransposed, int kCols>
  __device__ static __forceinline__ void multiply(FloatRows<kCols>& rows, const float* a, int lda,
                                                  int first, const float* b, int ldb, int depth) {
    const int lane = fresh_lane_id(), row = lane / 8 * 2, column = lane % 8 * 2;
    static_assert(kCols == 16 || kCols % 32 == 0);
    const int other = lda % 32 == 0 ? (first ^ 16) - 16 : first;
#pragma unroll 1
    for (int k = 0; k < depth; k += 4) {
      const int swap = order(k);
      const int along[2] = {column ^ swap, (column ^ swap ^ 8) - 8};
      const int across[2][2] = {{first + row + swap, first + row + (swap ^ 8)},
                                {other + row + swap, other + row + (swap ^ 8)}};
      const int even = at(first + row, k, lda), odd = at(first + row + 1, k, lda);
#pragma unroll
      for (int t = 0; t < 4; ++t) {
        const int turn = order(t), flip = turn / 8 % 2;
        float left[4];
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
          if constexpr (kTransposed) {
            const int eights = k * lda + at(t, 0, lda) - 8 * flip;
            const Pair pair = load_pair(a + eights + across[turn / 16][i / 2 ^ flip]);
            left[i] = pair.first;
            left[i + 1] = pair.second;
          } else {
            left[i] = a[even + i * 4 * lda + t];
            left[i + 1] = a[odd + i * 4 * lda + t];
          }
        }
#pragma unroll
        for (int j = 0; j < kCols / 16; ++j) {
          const Pair pair = load_pair(b + k * ldb + at(t, 16 * j, ldb) + along[flip]);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            rows.v[j][i][0] += left[i] * pair.first;
            rows.v[j][i][1] += left[i] * pair.second;
          }
        }
      }
    }
  }
};

}  // namespace atlas::kernels::cuda
