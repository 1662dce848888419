// Products inside one chunk, where a token sees the window rows up to its own, and the kernel of
// the polynomial map that they go through (docs/math/omega_rule.md, section 3). Included by kernel
// bodies after isa_begin.h.
#pragma once
#include "kernels/cpu/omega_chunk.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// Tokens that share one column limit in causal products: a multiple of every tile height.
constexpr int64_t kCausalBlock = 12;

// out [tokens, rp] = rows [tokens, .] columns [., rp], each token's row up to the window rows it
// can see.
template <class T>
inline void causal_scores(T* out, const Chunk<T>& c, const Sizes& sz, const T* rows, int64_t ld,
                          int64_t depth, const T* columns) {
  for (int64_t t = 0; t < c.tokens; t += kCausalBlock) {
    const int64_t block = smaller(kCausalBlock, c.tokens - t);
    gemm(block, c.overhang + t + block, depth, plain(rows + t * ld, ld), columns, sz.rp,
         out + t * sz.rp, sz.rp);
  }
}

// out [tokens, ld] += coefficients [tokens, rp] rows [rows, ld]; coefficients are zero beyond what
// a token sees.
template <class T>
inline void causal_read(T* out, const Chunk<T>& c, const Sizes& sz, const T* coefficients,
                        const T* rows, int64_t ld, int64_t width) {
  for (int64_t t = 0; t < c.tokens; t += kCausalBlock) {
    const int64_t block = smaller(kCausalBlock, c.tokens - t);
    gemm(block, width, c.overhang + t + block, plain(coefficients + t * sz.rp, sz.rp), rows, ld,
         out + t * ld, ld, T(1), T(1));
  }
}

// out [rows, ld] += coefficients [tokens, rp]ᵀ tokens [tokens, ld]
template <class T>
inline void causal_write(T* out, const Chunk<T>& c, const Sizes& sz, const T* coefficients,
                         const T* tokens, int64_t ld, int64_t width) {
  // Blocks start where a block of tokens does: nothing beyond a token's column limit is read.
  for (int64_t i = 0, block; i < c.rows(); i += block) {
    block = i < c.overhang ? c.overhang : smaller(kCausalBlock, c.rows() - i);
    const int64_t from = larger(0, i - c.overhang);  // earlier tokens do not see row i
    gemm(block, width, c.tokens - from, transposed(coefficients + from * sz.rp + i, sz.rp),
         tokens + from * ld, ld, out + i * ld, ld, T(1), T(1));
  }
}

// kernel [count] = sum_l c_l² score^l, the polynomial map's kernel; the scores themselves where
// there is no map.
template <class T>
ATLAS_INLINE void kernel_of_scores(T* kernel, const T* scores, const PolyMap<T>& map,
                                   int64_t count) {
  if (map.degree == 0) {
    if (kernel != scores)
      for (int64_t i = 0; i < count; ++i) kernel[i] = scores[i];
    return;
  }
  const T top = map.c[map.degree] * map.c[map.degree];
  for (int64_t i = 0; i < count; ++i) kernel[i] = top;
  for (int l = map.degree - 1; l >= 0; --l) {
    const T c = map.c[l] * map.c[l];
    for (int64_t i = 0; i < count; ++i) kernel[i] = kernel[i] * scores[i] + c;
  }
}

// grad [count]: with respect to the kernel on entry, to the scores on return; adds the gradient of
// the c_l.
template <class T>
inline void kernel_of_scores_backward(T* grad, T* grad_c, const T* scores, const PolyMap<T>& map,
                                      int64_t count, T* power, T* slope) {
  if (map.degree == 0) return;
  for (int64_t i = 0; i < count; ++i) {
    power[i] = grad[i];
    slope[i] = T(0);
  }
  for (int l = 0; l <= map.degree; ++l) {
    T total = 0;
    for (int64_t i = 0; i < count; ++i) total += power[i];
    grad_c[l] += 2 * map.c[l] * total;
    if (l == map.degree) break;
    const T c = map.c[l + 1] * map.c[l + 1] * static_cast<T>(l + 1);
    for (int64_t i = 0; i < count; ++i) {
      slope[i] += c * power[i];
      power[i] *= scores[i];
    }
  }
  for (int64_t i = 0; i < count; ++i) grad[i] = slope[i];
}

// dst_i = factor_i * src_i, row by row.
template <class T>
ATLAS_INLINE void scale_rows(T* dst, const T* factor, const T* src, int64_t rows, int64_t ld) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < ld; ++j) dst[i * ld + j] = factor[i] * src[i * ld + j];
}

// Window rows that causal products touch for token t: those of the last token in t's block.
template <class T>
ATLAS_INLINE int64_t causal_limit(const Chunk<T>& c, int64_t t) {
  return c.overhang + smaller((t / kCausalBlock + 1) * kCausalBlock, c.tokens);
}

// What the queries of a layer see of its rows.
template <class T>
struct Inside {
  T* columns;       // [depth, rp] the rows, transposed
  T* scores;        // [tokens, rp] u_t . x_i, before the kernel where there is one
  T* kernel;        // [tokens, rp], or one line where kernel_step is 0
  T* coefficients;  // [tokens, rp] -Cf kernel(scores); may be scores
  int64_t kernel_step;
};

// queries [tokens, ld], rows [rows, ld]; `map` has degree 0 where the scores are the kernel.
template <class T>
inline void inside_forward(const Inside<T>& inside, const Chunk<T>& c, const Sizes& sz,
                           const PolyMap<T>& map, const T* queries, const T* rows, int64_t ld,
                           int64_t depth) {
  transpose(inside.columns, sz.rp, rows, ld, c.rows(), depth);
  causal_scores(inside.scores, c, sz, queries, ld, depth, inside.columns);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int64_t limit = causal_limit(c, t), offset = t * sz.rp;
    const T* cf = c.cf + offset;
    T* kernel = inside.kernel + t * inside.kernel_step;
    T* coefficients = inside.coefficients + offset;
    kernel_of_scores(kernel, inside.scores + offset, map, limit);
    for (int64_t i = 0; i < limit; ++i) coefficients[i] = -cf[i] * kernel[i];
  }
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
