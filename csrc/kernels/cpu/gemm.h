// Matrix products on scratch matrices for one instruction set; included by kernel bodies after
// isa_begin.h.
#pragma once
#include "kernels/cpu/simd.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// A read as A[m * row + k * col]: a transposed operand costs nothing, because A is only ever
// broadcast.
template <class T>
struct Operand {
  const T* data;
  int64_t row, col;
};

template <class T>
ATLAS_INLINE Operand<T> plain(const T* data, int64_t ld) {
  return {data, ld, 1};
}

template <class T>
ATLAS_INLINE Operand<T> transposed(const T* data, int64_t ld) {
  return {data, 1, ld};
}

// One kRows x (kVectors * width) tile: C = alpha * A B + beta * C.
template <class T, int kRows, int kVectors>
ATLAS_INLINE void gemm_tile(int64_t depth, const T* a, int64_t a_row, int64_t a_col, const T* b,
                            int64_t ldb, T* c, int64_t ldc, T alpha, T beta) {
  constexpr int64_t w = kWidth<T>;
  Vec<T> acc[kRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[kVectors];
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) row[j] = load(b + j * w);
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) {
      const Vec<T> x = splat<T>(a[i * a_row]);
#pragma GCC unroll 8
      for (int j = 0; j < kVectors; ++j) acc[i][j] += x * row[j];
    }
    a += a_col;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kVectors; ++j) {
      T* out = c + i * ldc + j * w;
      Vec<T> value = acc[i][j] * alpha;
      if (beta != T(0)) value += load(out) * beta;
      store(out, value);
    }
  }
}

// Rows of one tile for a given number of vectors: as many accumulators as the register file holds.
template <int kVectors>
constexpr int kTileRows = ATLAS_VECTOR_REGISTERS == 32 ? (kVectors == 4   ? 6
                                                          : kVectors == 3 ? 8
                                                                          : 12)
                                                       : (kVectors == 3   ? 4
                                                          : kVectors == 2 ? 6
                                                                          : 8);
constexpr int kTileVectors = ATLAS_VECTOR_REGISTERS == 32 ? 4 : 2;

template <class T, int kRows, int kVectors>
ATLAS_INLINE void gemm_rows(int64_t rows, int64_t depth, Operand<T> a, const T* b, int64_t ldb,
                            T* c, int64_t ldc, T alpha, T beta) {
  if constexpr (kRows > 0) {
    if (rows == kRows)
      gemm_tile<T, kRows, kVectors>(depth, a.data, a.row, a.col, b, ldb, c, ldc, alpha, beta);
    else
      gemm_rows<T, kRows - 1, kVectors>(rows, depth, a, b, ldb, c, ldc, alpha, beta);
  }
}

template <class T, int kVectors>
inline __attribute__((noinline)) void gemm_panel(int64_t rows, int64_t depth, Operand<T> a,
                                                 const T* b, int64_t ldb, T* c, int64_t ldc,
                                                 T alpha, T beta) {
  constexpr int kRows = kTileRows<kVectors>;
  int64_t i = 0;
  for (; i + kRows <= rows; i += kRows)
    gemm_tile<T, kRows, kVectors>(depth, a.data + i * a.row, a.row, a.col, b, ldb, c + i * ldc, ldc,
                                  alpha, beta);
  a.data += i * a.row;
  gemm_rows<T, kRows - 1, kVectors>(rows - i, depth, a, b, ldb, c + i * ldc, ldc, alpha, beta);
}

// C [rows, cols] = alpha * A [rows, depth] B [depth, cols] + beta * C; beta = 0 never reads C. B
// and C are scratch matrices: row-major, cols rounded up to whole vectors (padded), whose padding
// is read and written.
template <class T>
inline void gemm(int64_t rows, int64_t cols, int64_t depth, Operand<T> a, const T* b, int64_t ldb,
                 T* c, int64_t ldc, T alpha = T(1), T beta = T(0)) {
  constexpr int64_t w = kWidth<T>;
  int64_t j = 0;
  for (; j + kTileVectors * w <= cols; j += kTileVectors * w)
    gemm_panel<T, kTileVectors>(rows, depth, a, b + j, ldb, c + j, ldc, alpha, beta);
  const int64_t rest = (cols - j + w - 1) / w;
  if constexpr (kTileVectors >= 4) {
    if (rest == 4) return gemm_panel<T, 4>(rows, depth, a, b + j, ldb, c + j, ldc, alpha, beta);
    if (rest == 3) return gemm_panel<T, 3>(rows, depth, a, b + j, ldb, c + j, ldc, alpha, beta);
  }
  if (rest == 2) return gemm_panel<T, 2>(rows, depth, a, b + j, ldb, c + j, ldc, alpha, beta);
  if (rest == 1) return gemm_panel<T, 1>(rows, depth, a, b + j, ldb, c + j, ldc, alpha, beta);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
