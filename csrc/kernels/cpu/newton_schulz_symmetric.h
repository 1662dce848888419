// Symmetric scratch matrices [n, padded(n)]: half of a product computed, the other half mirrored.
// Included by kernel bodies after isa_begin.h. The allocation has padded(n) rows, because whole
// blocks are mirrored; rows past n are never read unless a comment says so.
#pragma once
#include "kernels/cpu/split.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// Rows of one band of a half product: a multiple of every vector width.
constexpr int64_t kBandRows = 16;

// The blocks of C [n, n] = alpha * A B on and above the diagonal, for a product known to be
// symmetric. A band and its mirror image from the end are as much work as any other two.
template <class T, class Split>
inline void upper_product(const Split& split, int64_t n, int64_t depth, Operand<T> a, const T* b,
                          int64_t ldb, T* c, int64_t ldc, T alpha = T(1)) {
  static_assert(kBandRows % kWidth<T> == 0, "a band starts at a whole vector");
  const int64_t bands = (n + kBandRows - 1) / kBandRows;
  const auto make = [&](int64_t band) {
    const int64_t i = band * kBandRows;
    gemm<T>(smaller(kBandRows, n - i), n - i, depth, {a.data + i * a.row, a.row, a.col}, b + i, ldb,
            c + i * ldc + i, ldc, alpha);
  };
  split((bands + 1) / 2, [&](int64_t begin, int64_t end) {
    for (int64_t band = begin; band < end; ++band) {
      make(band);
      if (bands - 1 - band > band) make(bands - 1 - band);
    }
  });
}

// Copies the blocks above the diagonal, transposed, to below it.
template <class T, class Split>
inline void mirror(const Split& split, int64_t n, T* c, int64_t ldc) {
  constexpr int64_t w = kWidth<T>;
  split((n + w - 1) / w, [&](int64_t begin, int64_t end) {
    for (int64_t j = begin * w; j < smaller(end * w, n); j += w)
      for (int64_t i = 0; i < j; i += w)
        transpose_block(c + j * ldc + i, ldc, c + i * ldc + j, ldc);
  });
}

// C [n, n] = A B, symmetric.
template <class T, class Split>
inline void symmetric_product(const Split& split, int64_t n, int64_t depth, Operand<T> a,
                              const T* b, int64_t ldb, T* c, int64_t ldc) {
  upper_product<T>(split, n, depth, a, b, ldb, c, ldc);
  mirror(split, n, c, ldc);
}

// Z = a I + b A + c A^2 for symmetric A.
template <class T, class Split>
inline void symmetric_quadratic(const Split& split, int64_t n, T* z, const T* gram, int64_t ld, T a,
                                T b, T c) {
  constexpr int64_t w = kWidth<T>;
  upper_product<T>(split, n, n, plain(gram, ld), gram, ld, z, ld, c);
  split(n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = i / w * w; j < n; j += w)
        store(z + i * ld + j, load(z + i * ld + j) + load(gram + i * ld + j) * b);
      z[i * ld + i] += a;
    }
  });
  mirror(split, n, z, ld);
}

// M <- M + M^T. The rows of M from n to padded(n) are made zero.
template <class T, class Split>
inline void symmetrise(const Split& split, int64_t n, T* m, int64_t ld) {
  constexpr int64_t w = kWidth<T>;
  fill_zero(m + n * ld, (padded<T>(n) - n) * ld);
  split((n + w - 1) / w, [&](int64_t begin, int64_t end) {
    T left[w * w], right[w * w];
    for (int64_t j = begin * w; j < smaller(end * w, n); j += w) {
      for (int64_t i = 0; i <= j; i += w) {
        T* upper = m + i * ld + j;
        T* lower = m + j * ld + i;
        transpose_block(left, w, upper, ld);
        transpose_block(right, w, lower, ld);
        for (int64_t r = 0; r < w; ++r) {
          const Vec<T> above = load(upper + r * ld) + load(right + r * w);
          const Vec<T> below = load(lower + r * ld) + load(left + r * w);
          store(upper + r * ld, above);
          store(lower + r * ld, below);
        }
      }
    }
  });
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
