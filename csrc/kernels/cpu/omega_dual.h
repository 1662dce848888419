// The dual form of one chunk (no Newton-Schulz): a handful of matrix products, nothing of size
// tokens x weights (docs/math/omega_rule.md). Included by kernel bodies after isa_begin.h.
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

// What moves the state over the chunk: rows of M' - m M + s S and of S' - p S (their outer products
// with x_i).
template <class T>
inline void state_writes(T* to_weights, T* to_momentum, const Chunk<T>& c, const Sizes& sz,
                         const T* e) {
  const T* a = c.a + (c.tokens - 1) * sz.rp;
  const T* cf = c.cf + (c.tokens - 1) * sz.rp;
  for (int64_t i = 0; i < c.rows(); ++i)
    for (int64_t j = 0; j < sz.vp; ++j) {
      to_weights[i * sz.vp + j] = -cf[i] * e[i * sz.vp + j];
      if (to_momentum != nullptr) to_momentum[i * sz.vp + j] = a[i] * e[i * sz.vp + j];
    }
}

template <class T>
struct DualWork {
  T* kt;       // [K, rp] the window's keys, transposed
  T* scores;   // [tokens, rp] q_t . k_i
  T* reads;    // [tokens, vp] S u_t
  T* kernel;   // [rp]
  T* writes;   // [rows, vp]
  T* writes2;  // [rows, vp]

  DualWork(Arena<T>& arena, const Sizes& sz, const OmegaOptions& options) {
    if (options.ns.steps > 0) return;
    kt = arena.take(sz.key * sz.rp);
    scores = arena.take(sz.chunk * sz.rp);
    reads = arena.take(sz.chunk * sz.vp);
    kernel = arena.take(sz.rp);
    writes = arena.take(sz.rows * sz.vp);
    writes2 = arena.take(sz.rows * sz.vp);
  }
};

// Window rows that causal products touch for token t: those of the last token in t's block.
template <class T>
ATLAS_INLINE int64_t causal_limit(const Chunk<T>& c, int64_t t) {
  return c.overhang + smaller((t / kCausalBlock + 1) * kCausalBlock, c.tokens);
}

// y [tokens, vp]; weights and momentum [D, vp] go from the chunk's start to its end if `advance`.
// No momentum: null.
template <class T>
inline void dual_forward(T* y, T* weights, T* momentum, const Chunk<T>& c, const Sizes& sz,
                         const PolyMap<T>& map, const T* e, const DualWork<T>& work, bool advance) {
  scan_chunk(c, sz, momentum != nullptr);
  transpose(work.kt, sz.rp, c.k, sz.kp, c.rows(), sz.key);
  causal_scores(work.scores, c, sz, c.q, sz.kp, sz.key, work.kt);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int64_t limit = causal_limit(c, t);
    T* scores = work.scores + t * sz.rp;
    const T* cf = c.cf + t * sz.rp;
    kernel_of_scores(work.kernel, scores, map, limit);
    for (int64_t i = 0; i < limit; ++i) scores[i] = -cf[i] * work.kernel[i];
  }
  gemm(c.tokens, sz.value, sz.features, plain(c.u, sz.dp), weights, sz.vp, y, sz.vp);
  scale_rows(y, c.m, y, c.tokens, sz.vp);
  if (momentum != nullptr) {
    gemm(c.tokens, sz.value, sz.features, plain(c.u, sz.dp), momentum, sz.vp, work.reads, sz.vp);
    for (int64_t t = 0; t < c.tokens; ++t)
      axpy(y + t * sz.vp, -c.s[t], work.reads + t * sz.vp, sz.vp);
  }
  causal_read(y, c, sz, work.scores, e, sz.vp, sz.value);
  if (!advance) return;
  const int64_t last = c.tokens - 1, size = sz.features * sz.vp;
  state_writes(work.writes, momentum == nullptr ? nullptr : work.writes2, c, sz, e);
  if (momentum == nullptr) {
    gemm(sz.features, sz.value, c.rows(), transposed(c.x, sz.dp), work.writes, sz.vp, weights,
         sz.vp, T(1), c.m[last]);
    return;
  }
  for (int64_t i = 0; i < size; ++i) weights[i] = c.m[last] * weights[i] - c.s[last] * momentum[i];
  gemm(sz.features, sz.value, c.rows(), transposed(c.x, sz.dp), work.writes, sz.vp, weights, sz.vp,
       T(1), T(1));
  gemm(sz.features, sz.value, c.rows(), transposed(c.x, sz.dp), work.writes2, sz.vp, momentum,
       sz.vp, T(1), c.p[last]);
}

// What the adjoint of one chunk works on; the names are those of docs/math/omega_rule.md with grad_
// for adjoints.
template <class T>
struct ChunkGrads {
  T* y;                                 // [tokens, vp] in
  T* weights;                           // [D, vp] in: of the state after the chunk, out: before it
  T* momentum;                          // [D, vp] likewise; null without
  T* e;                                 // [rows, vp] out
  T* u;                                 // [tokens, dp] out: through reads of the state
  T* x;                                 // [rows, dp] out: through writes of the state
  T* scores;                            // [tokens, rp] out: dual form only
  T* c;                                 // [degree + 1] added to
  bool wants_u = true, wants_x = true;  // else u, x and what follows from them are left alone
  GateGrads<T> gates;

  ChunkGrads(Arena<T>& arena, const Sizes& sz, bool with_momentum) : gates(arena, sz) {
    const int64_t w = kWidth<T>;
    y = arena.take(sz.chunk * sz.vp);
    weights = arena.take(sz.features * sz.vp);
    momentum = with_momentum ? arena.take(sz.features * sz.vp) : nullptr;
    e = arena.take(sz.rows * sz.vp);
    u = arena.take(sz.chunk * sz.dp + w);
    x = arena.take(sz.rows * sz.dp + w);
    scores = arena.take(sz.chunk * sz.rp);
    c = arena.take(kMaxDegree + 1);
  }
};

template <class T>
struct DualBackwardWork {
  T* kt;        // [K, rp]
  T* et;        // [V, rp]
  T* scores;    // [tokens, rp]
  T* kernel;    // [tokens, rp] -Cf * kernel(scores)
  T* z;         // [tokens, rp] grad_y_t . e_i
  T* reads;     // [tokens, dp]
  T* by_state;  // [rows, vp]
  T* rows;      // [V, dp] a state with V in rows
  T* line;      // [2, rp]

  DualBackwardWork(Arena<T>& arena, const Sizes& sz, const OmegaOptions& options) {
    if (options.ns.steps > 0) return;
    kt = arena.take(sz.key * sz.rp);
    et = arena.take(sz.value * sz.rp);
    scores = arena.take(sz.chunk * sz.rp);
    kernel = arena.take(sz.chunk * sz.rp);
    z = arena.take(sz.chunk * sz.rp);
    reads = arena.take(sz.chunk * sz.dp);
    by_state = arena.take(2 * sz.rows * sz.vp);
    rows = arena.take(sz.value * sz.dp);
    line = arena.take(2 * sz.rp);
  }
};

// The part inside the chunk: B_ti = -Cf_ti kernel(q_t . k_i), y_t += sum_i B_ti e_i.
template <class T>
inline void dual_backward_inside(const ChunkGrads<T>& g, const Chunk<T>& c, const Sizes& sz,
                                 const PolyMap<T>& map, const T* e,
                                 const DualBackwardWork<T>& work) {
  transpose(work.kt, sz.rp, c.k, sz.kp, c.rows(), sz.key);
  transpose(work.et, sz.rp, e, sz.vp, c.rows(), sz.value);
  causal_scores(work.scores, c, sz, c.q, sz.kp, sz.key, work.kt);
  causal_scores(work.z, c, sz, g.y, sz.vp, sz.value, work.et);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int64_t limit = causal_limit(c, t), offset = t * sz.rp;
    const T* cf = c.cf + offset;
    const T* z = work.z + offset;
    T* kernel = work.kernel + offset;
    T* grad_cf = g.gates.cf + offset;
    T* grad_scores = g.scores + offset;
    kernel_of_scores(kernel, work.scores + offset, map, limit);
    for (int64_t i = 0; i < limit; ++i) {
      grad_cf[i] = -kernel[i] * z[i];
      grad_scores[i] = -cf[i] * z[i];
      kernel[i] *= -cf[i];
    }
    kernel_of_scores_backward(grad_scores, g.c, work.scores + offset, map, limit, work.line,
                              work.line + sz.rp);
  }
  fill_zero(g.e, c.rows() * sz.vp);
  causal_write(g.e, c, sz, work.kernel, g.y, sz.vp, sz.value);
}

// What the state contributes to the reads: y_t += m_t M u_t - s_t S u_t. `rows` is the state as [V,
// dp].
template <class T>
inline void dual_backward_read(T* grad_u, T* grad_factor, T* grad_state, const Chunk<T>& c,
                               const Sizes& sz, const T* grad_y, const T* factor, T sign,
                               const T* rows, T* reads, T* scaled) {
  gemm(c.tokens, sz.features, sz.value, plain(grad_y, sz.vp), rows, sz.dp, reads, sz.dp);
  for (int64_t t = 0; t < c.tokens; ++t) {
    grad_factor[t] = sign * dot(reads + t * sz.dp, c.u + t * sz.dp, sz.features);
    axpy(grad_u + t * sz.dp, sign * factor[t], reads + t * sz.dp, sz.features);
  }
  scale_rows(scaled, factor, grad_y, c.tokens, sz.vp);
  gemm(sz.features, sz.value, c.tokens, transposed(c.u, sz.dp), scaled, sz.vp, grad_state, sz.vp,
       sign, T(1));
}

// Adjoint of dual_forward. weights, momentum [D, vp]: the state that enters the chunk.
template <class T>
inline void dual_backward(const ChunkGrads<T>& g, const Chunk<T>& c, const Sizes& sz,
                          const PolyMap<T>& map, const T* weights, const T* momentum, const T* e,
                          const DualBackwardWork<T>& work) {
  const int64_t last = c.tokens - 1, size = sz.features * sz.vp;
  const T* a_last = c.a + last * sz.rp;
  const T* cf_last = c.cf + last * sz.rp;
  scan_chunk(c, sz, momentum != nullptr);
  dual_backward_inside(g, c, sz, map, e, work);
  fill_zero(g.gates.a, c.tokens * sz.rp);
  fill_zero(g.gates.p, c.tokens);
  fill_zero(g.gates.s, c.tokens);
  fill_zero(g.u, c.tokens * sz.dp);

  // M' = m M - s S - sum_i Cf_i e_i x_iᵀ, S' = p S + sum_i A_i e_i x_iᵀ with the last token's m, s,
  // p, Cf, A
  T* by_weights = work.by_state;
  T* by_momentum = work.by_state + sz.rows * sz.vp;
  gemm(c.rows(), sz.value, sz.features, plain(c.x, sz.dp), g.weights, sz.vp, by_weights, sz.vp);
  if (momentum != nullptr)
    gemm(c.rows(), sz.value, sz.features, plain(c.x, sz.dp), g.momentum, sz.vp, by_momentum, sz.vp);
  for (int64_t i = 0; i < c.rows(); ++i) {
    const T* row = by_weights + i * sz.vp;
    g.gates.cf[last * sz.rp + i] -= dot(e + i * sz.vp, row, sz.value);
    axpy(g.e + i * sz.vp, -cf_last[i], row, sz.vp);
    if (momentum == nullptr) continue;
    row = by_momentum + i * sz.vp;
    g.gates.a[last * sz.rp + i] += dot(e + i * sz.vp, row, sz.value);
    axpy(g.e + i * sz.vp, a_last[i], row, sz.vp);
  }
  if (g.wants_x) {
    state_writes(by_weights, momentum == nullptr ? nullptr : by_momentum, c, sz, e);
    transpose(work.rows, sz.dp, g.weights, sz.vp, sz.features, sz.value);
    gemm(c.rows(), sz.features, sz.value, plain(by_weights, sz.vp), work.rows, sz.dp, g.x, sz.dp);
    if (momentum != nullptr) {
      transpose(work.rows, sz.dp, g.momentum, sz.vp, sz.features, sz.value);
      gemm(c.rows(), sz.features, sz.value, plain(by_momentum, sz.vp), work.rows, sz.dp, g.x, sz.dp,
           T(1), T(1));
    }
  }
  const T grad_m = dot(g.weights, weights, size);
  const T grad_s = momentum == nullptr ? T(0) : -dot(g.weights, momentum, size);
  const T grad_p = momentum == nullptr ? T(0) : dot(g.momentum, momentum, size);
  if (momentum != nullptr)
    for (int64_t i = 0; i < size; ++i)
      g.momentum[i] = c.p[last] * g.momentum[i] - c.s[last] * g.weights[i];
  for (int64_t i = 0; i < size; ++i) g.weights[i] *= c.m[last];

  transpose(work.rows, sz.dp, weights, sz.vp, sz.features, sz.value);
  dual_backward_read(g.u, g.gates.m, g.weights, c, sz, g.y, c.m, T(1), work.rows, work.reads,
                     by_weights);
  if (momentum != nullptr) {
    transpose(work.rows, sz.dp, momentum, sz.vp, sz.features, sz.value);
    dual_backward_read(g.u, g.gates.s, g.momentum, c, sz, g.y, c.s, T(-1), work.rows, work.reads,
                       by_weights);
  }
  g.gates.m[last] += grad_m;
  g.gates.s[last] += grad_s;
  g.gates.p[last] += grad_p;
  scan_chunk_backward(g.gates, c, sz, momentum != nullptr);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
