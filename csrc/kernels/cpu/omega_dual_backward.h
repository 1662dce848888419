// Adjoint of the dual form of one chunk (docs/math/omega_rule.md, sections 5 and 7); included by
// kernel bodies after isa_begin.h. Names are those of the documentation with grad_ for adjoints.
#pragma once
#include "kernels/cpu/omega_dual.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// What the adjoint of one chunk works on.
template <class T>
struct ChunkGrads {
  T* y;                                 // [tokens, vp] in
  T* weights;                           // a state; in: after the chunk, out: before it
  T* momentum;                          // likewise; null without
  T* d[kMostMatrices] = {};             // [rows, op] out; the last one is e
  T* u;                                 // [tokens, dp] out: through reads of the state
  T* x;                                 // [rows, dp] out: through writes of the state
  T* h;                                 // [rows, fp] out: of the rows' hidden layer; deep only
  T* hidden;                            // [tokens, fp] of the queries' hidden layer; deep only
  T* z[2];                              // [tokens, fp] of its first layer; deep only
  T* scores;                            // [tokens, rp] out: dual form only
  T* c;                                 // [degree + 1] added to
  bool wants_u = true, wants_x = true;  // else u, x and what follows from them are left alone
  GateGrads<T> gates;

  ChunkGrads(Arena<T>& arena, const Sizes& sz, bool with_momentum) : gates(arena, sz) {
    const int64_t w = kWidth<T>;
    y = arena.take(sz.chunk * sz.vp);
    weights = arena.take(sz.state);
    momentum = with_momentum ? arena.take(sz.state) : nullptr;
    for (int l = 0; l < sz.matrices; ++l) d[l] = arena.take(sz.rows * sz.matrix[l].op);
    u = arena.take(sz.chunk * sz.dp + w);
    x = arena.take(sz.rows * sz.dp + w);
    h = sz.deep() ? arena.take(sz.rows * sz.fp) : nullptr;
    hidden = sz.deep() ? arena.take(sz.chunk * sz.fp) : nullptr;
    for (int l = 0; l < sz.first_layer() && sz.deep(); ++l) z[l] = arena.take(sz.chunk * sz.fp);
    scores = arena.take(sz.chunk * sz.rp);
    c = arena.take(kMaxDegree + 1);
  }
};

template <class T>
struct DualBackwardWork {
  Inside<T> lifted, inner;  // of the layers that see phi, and of the last one of a deep memory
  Hidden<T> queries;
  T* dt;        // [op, rp] error signals, transposed
  T* z;         // [tokens, rp] grad_y_t . d_i
  T* scores;    // [tokens, rp] gradient of the inner scores
  T* by_state;  // 2 x [rows, widest]
  T* rows;      // one matrix, as [out, ip]
  T* reads;     // [tokens, widest]
  T* line;      // [2, rp]

  DualBackwardWork(Arena<T>& arena, const Sizes& sz, const OmegaOptions& options)
      : lifted(), inner(), queries(arena, sz, options.ns.steps > 0 ? 0 : sz.chunk) {
    if (options.ns.steps > 0) return;
    lifted = inside(arena, sz, sz.key);
    if (sz.deep()) inner = inside(arena, sz, sz.hidden);
    int64_t most = 0;
    for (int l = 0; l < sz.matrices; ++l) most = larger(most, sz.matrix[l].out * sz.matrix[l].ip);
    dt = arena.take(larger(sz.value, sz.hidden) * sz.rp);
    z = arena.take(sz.chunk * sz.rp);
    scores = arena.take(sz.chunk * sz.rp);
    by_state = arena.take(2 * larger(sz.rows, sz.chunk) * sz.widest);
    rows = arena.take(most);
    reads = arena.take(sz.chunk * sz.widest);
    line = arena.take(2 * sz.rp);
  }

 private:
  static Inside<T> inside(Arena<T>& arena, const Sizes& sz, int64_t depth) {
    const int64_t size = sz.chunk * sz.rp;
    T* columns = arena.take(depth * sz.rp);
    T* scores = arena.take(size);
    T* kernel = arena.take(size);
    return {columns, scores, kernel, arena.take(size), sz.rp};
  }
};

// The part of one matrix's read inside the chunk, y_t += sum_i coefficients_ti d_i: gives grad_d,
// adds to (or begins) the gradients of Cf and of the kernel.
template <class T>
inline void inside_backward(const ChunkGrads<T>& g, T* grad_d, T* grad_kernel, const Chunk<T>& c,
                            const Sizes& sz, const MatrixSizes& m, const Inside<T>& inside,
                            const T* grad_y, const T* d, const DualBackwardWork<T>& work,
                            bool begins_cf, bool begins_kernel) {
  transpose(work.dt, sz.rp, d, m.op, c.rows(), m.out);
  causal_scores(work.z, c, sz, grad_y, m.op, m.out, work.dt);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int64_t limit = causal_limit(c, t), offset = t * sz.rp;
    const T* cf = c.cf + offset;
    const T* z = work.z + offset;
    const T* kernel = inside.kernel + offset;
    T* grad_cf = g.gates.cf + offset;
    T* grad = grad_kernel + offset;
    for (int64_t i = 0; i < limit; ++i) {
      grad_cf[i] = (begins_cf ? T(0) : grad_cf[i]) - kernel[i] * z[i];
      grad[i] = (begins_kernel ? T(0) : grad[i]) - cf[i] * z[i];
    }
  }
  fill_zero(grad_d, c.rows() * m.op);
  causal_write(grad_d, c, sz, inside.coefficients, grad_y, m.op, m.out);
}

// What the state contributes to the reads: y_t += m_t M u_t - s_t S u_t. `rows` is the matrix as
// [out, ip].
template <class T>
inline void dual_backward_read(T* grad_u, T* grad_factor, T* grad_state, const Chunk<T>& c,
                               const MatrixSizes& m, const T* grad_y, const T* u, const T* factor,
                               T sign, const T* rows, T* reads, T* scaled) {
  gemm(c.tokens, m.in, m.out, plain(grad_y, m.op), rows, m.ip, reads, m.ip);
  for (int64_t t = 0; t < c.tokens; ++t) {
    grad_factor[t] += sign * dot(reads + t * m.ip, u + t * m.ip, m.in);
    axpy(grad_u + t * m.ip, sign * factor[t], reads + t * m.ip, m.in);
  }
  scale_rows(scaled, factor, grad_y, c.tokens, m.op);
  gemm(m.in, m.out, c.tokens, transposed(u, m.ip), scaled, m.op, grad_state + m.at, m.op, sign,
       T(1));
}

// What one matrix of the state and its writes contribute. x, u: its inputs; grad_u is added to,
// grad_x (null: not wanted) is begun if `begins_x`; weights, momentum: states that enter the chunk.
template <class T>
inline void dual_backward_state(const ChunkGrads<T>& g, T* grad_d, T* grad_x, T* grad_u,
                                const Chunk<T>& c, const Sizes& sz, const MatrixSizes& m,
                                const T* weights, const T* momentum, const T* x, const T* u,
                                const T* d, const T* grad_y, const DualBackwardWork<T>& work,
                                bool begins_x) {
  const int64_t last = c.tokens - 1, size = m.in * m.op;
  const T* a_last = c.a + last * sz.rp;
  const T* cf_last = c.cf + last * sz.rp;
  T* grad_w = g.weights + m.at;
  T* grad_s = momentum == nullptr ? nullptr : g.momentum + m.at;

  // M' = m M - s S - sum_i Cf_i d_i x_iᵀ, S' = p S + sum_i A_i d_i x_iᵀ with the last token's m, s,
  // p, Cf, A
  T* by_weights = work.by_state;
  T* by_momentum = work.by_state + larger(sz.rows, sz.chunk) * sz.widest;
  gemm(c.rows(), m.out, m.in, plain(x, m.ip), grad_w, m.op, by_weights, m.op);
  if (momentum != nullptr)
    gemm(c.rows(), m.out, m.in, plain(x, m.ip), grad_s, m.op, by_momentum, m.op);
  for (int64_t i = 0; i < c.rows(); ++i) {
    const T* row = by_weights + i * m.op;
    g.gates.cf[last * sz.rp + i] -= dot(d + i * m.op, row, m.out);
    axpy(grad_d + i * m.op, -cf_last[i], row, m.op);
    if (momentum == nullptr) continue;
    row = by_momentum + i * m.op;
    g.gates.a[last * sz.rp + i] += dot(d + i * m.op, row, m.out);
    axpy(grad_d + i * m.op, a_last[i], row, m.op);
  }
  if (grad_x != nullptr) {
    state_writes(by_weights, momentum == nullptr ? nullptr : by_momentum, c, sz, d, m.op);
    transpose(work.rows, m.ip, grad_w, m.op, m.in, m.out);
    gemm(c.rows(), m.in, m.out, plain(by_weights, m.op), work.rows, m.ip, grad_x, m.ip, T(1),
         begins_x ? T(0) : T(1));
    if (momentum != nullptr) {
      transpose(work.rows, m.ip, grad_s, m.op, m.in, m.out);
      gemm(c.rows(), m.in, m.out, plain(by_momentum, m.op), work.rows, m.ip, grad_x, m.ip, T(1),
           T(1));
    }
  }
  g.gates.m[last] += dot(grad_w, weights + m.at, size);
  if (momentum != nullptr) {
    g.gates.s[last] -= dot(grad_w, momentum + m.at, size);
    g.gates.p[last] += dot(grad_s, momentum + m.at, size);
    for (int64_t i = 0; i < size; ++i) grad_s[i] = c.p[last] * grad_s[i] - c.s[last] * grad_w[i];
  }
  for (int64_t i = 0; i < size; ++i) grad_w[i] *= c.m[last];

  transpose(work.rows, m.ip, weights + m.at, m.op, m.in, m.out);
  dual_backward_read(grad_u, g.gates.m, g.weights, c, m, grad_y, u, c.m, T(1), work.rows,
                     work.reads, by_weights);
  if (momentum == nullptr) return;
  transpose(work.rows, m.ip, momentum + m.at, m.op, m.in, m.out);
  dual_backward_read(grad_u, g.gates.s, g.momentum, c, m, grad_y, u, c.s, T(-1), work.rows,
                     work.reads, by_weights);
}

// The last matrix of a deep memory and the activation before it: from g.y to g.z, g.h and grad_d of
// the last matrix. The queries' hidden layer is computed anew.
template <class T>
inline void dual_backward_last(const ChunkGrads<T>& g, const Chunk<T>& c, const Sizes& sz,
                               const OmegaOptions& options, const T* weights, const T* momentum,
                               const Signals<T>& signals, const DualBackwardWork<T>& work) {
  const int last = sz.last();
  const MatrixSizes& m = sz.matrix[last];
  const T *queries = work.queries.h, *rows = signals.hidden.h;
  for (int l = 0; l < sz.first_layer(); ++l)
    dual_read(work.queries.z[l], c, sz, sz.matrix[l], c.u, weights, momentum,
              work.lifted.coefficients, signals.d[l], work.reads);
  activate_hidden(work.queries, sz, options.activation, 0, c.tokens, true);
  inside_forward(work.inner, c, sz, PolyMap<T>{}, queries, rows, sz.fp, sz.hidden);
  inside_backward(g, g.d[last], work.scores, c, sz, m, work.inner, g.y, signals.d[last], work, true,
                  true);
  fill_zero(g.hidden, c.tokens * sz.fp);
  dual_backward_state(g, g.d[last], g.h, g.hidden, c, sz, m, weights, momentum, rows, queries,
                      signals.d[last], g.y, work, true);
  causal_read(g.hidden, c, sz, work.scores, rows, sz.fp, sz.hidden);
  causal_write(g.h, c, sz, work.scores, queries, sz.fp, sz.hidden);
  activate_hidden_backward(g.z, g.hidden, work.queries, sz, 0, c.tokens);
}

// Adjoint of dual_forward. weights, momentum: the states that enter the chunk.
template <class T>
inline void dual_backward(const ChunkGrads<T>& g, const Chunk<T>& c, const Sizes& sz,
                          const OmegaOptions& options, const PolyMap<T>& map, const T* weights,
                          const T* momentum, const Signals<T>& signals,
                          const DualBackwardWork<T>& work) {
  scan_chunk(c, sz, momentum != nullptr);
  fill_zero(g.gates.a, c.tokens * sz.rp);
  fill_zero(g.gates.p, c.tokens);
  fill_zero(g.gates.s, c.tokens);
  fill_zero(g.gates.m, c.tokens);
  fill_zero(g.u, c.tokens * sz.dp);
  inside_forward(work.lifted, c, sz, map, c.q, c.k, sz.kp, sz.key);
  if (sz.deep()) dual_backward_last(g, c, sz, options, weights, momentum, signals, work);
  for (int l = 0; l < sz.first_layer(); ++l) {
    const MatrixSizes& m = sz.matrix[l];
    const T* grad_y = sz.deep() ? g.z[l] : g.y;
    inside_backward(g, g.d[l], g.scores, c, sz, m, work.lifted, grad_y, signals.d[l], work,
                    !sz.deep(), l == 0);
    dual_backward_state(g, g.d[l], g.wants_x ? g.x : nullptr, g.u, c, sz, m, weights, momentum, c.x,
                        c.u, signals.d[l], grad_y, work, l == 0);
  }
  for (int64_t t = 0; t < c.tokens; ++t)
    kernel_of_scores_backward(g.scores + t * sz.rp, g.c, work.lifted.scores + t * sz.rp, map,
                              causal_limit(c, t), work.line, work.line + sz.rp);
  scan_chunk_backward(g.gates, c, sz, momentum != nullptr);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
