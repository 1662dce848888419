// The dual form of one chunk (no Newton-Schulz): a handful of matrix products for every matrix of
// the memory, nothing of size tokens x weights (docs/math/omega_rule.md, section 3). Included by
// kernel bodies after isa_begin.h.
#pragma once
#include "kernels/cpu/omega_causal.h"
#include "kernels/cpu/omega_memory.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// What moves a matrix over the chunk: rows of M' - m M + s S and of S' - p S (their outer products
// with x_i).
template <class T>
inline void state_writes(T* to_weights, T* to_momentum, const Chunk<T>& c, const Sizes& sz,
                         const T* d, int64_t ld) {
  const T* a = c.a + (c.tokens - 1) * sz.rp;
  const T* cf = c.cf + (c.tokens - 1) * sz.rp;
  for (int64_t i = 0; i < c.rows(); ++i)
    for (int64_t j = 0; j < ld; ++j) {
      to_weights[i * ld + j] = -cf[i] * d[i * ld + j];
      if (to_momentum != nullptr) to_momentum[i * ld + j] = a[i] * d[i * ld + j];
    }
}

// y [tokens, op] = m_t M u_t - s_t S u_t - sum_i Cf_ti (x_i . u_t) d_i for one matrix; weights and
// momentum are states, momentum null without.
template <class T>
inline void dual_read(T* y, const Chunk<T>& c, const Sizes& sz, const MatrixSizes& m, const T* u,
                      const T* weights, const T* momentum, const T* coefficients, const T* d,
                      T* reads) {
  gemm(c.tokens, m.out, m.in, plain(u, m.ip), weights + m.at, m.op, y, m.op);
  scale_rows(y, c.m, y, c.tokens, m.op);
  if (momentum != nullptr) {
    gemm(c.tokens, m.out, m.in, plain(u, m.ip), momentum + m.at, m.op, reads, m.op);
    for (int64_t t = 0; t < c.tokens; ++t) axpy(y + t * m.op, -c.s[t], reads + t * m.op, m.op);
  }
  causal_read(y, c, sz, coefficients, d, m.op, m.out);
}

// One matrix of the state from the chunk's start to its end; x [rows, ip].
template <class T>
inline void dual_advance(T* weights, T* momentum, const Chunk<T>& c, const Sizes& sz,
                         const MatrixSizes& m, const T* x, const T* d, T* writes, T* writes2) {
  const int64_t last = c.tokens - 1, size = m.in * m.op;
  T* w = weights + m.at;
  state_writes(writes, momentum == nullptr ? nullptr : writes2, c, sz, d, m.op);
  if (momentum == nullptr) {
    gemm(m.in, m.out, c.rows(), transposed(x, m.ip), writes, m.op, w, m.op, T(1), c.m[last]);
    return;
  }
  T* s = momentum + m.at;
  for (int64_t i = 0; i < size; ++i) w[i] = c.m[last] * w[i] - c.s[last] * s[i];
  gemm(m.in, m.out, c.rows(), transposed(x, m.ip), writes, m.op, w, m.op, T(1), T(1));
  gemm(m.in, m.out, c.rows(), transposed(x, m.ip), writes2, m.op, s, m.op, T(1), c.p[last]);
}

template <class T>
struct DualWork {
  Inside<T> inside;
  Hidden<T> queries;
  T* reads;    // [tokens, widest] S u_t
  T* writes;   // [rows, widest]
  T* writes2;  // [rows, widest]

  DualWork(Arena<T>& arena, const Sizes& sz, const OmegaOptions& options)
      : inside(), queries(arena, sz, options.ns.steps > 0 ? 0 : sz.chunk) {
    if (options.ns.steps > 0) return;
    inside.columns = arena.take(larger(sz.key, sz.hidden) * sz.rp);
    inside.scores = inside.coefficients = arena.take(sz.chunk * sz.rp);
    inside.kernel = arena.take(sz.rp);
    reads = arena.take(sz.chunk * sz.widest);
    writes = arena.take(sz.rows * sz.widest);
    writes2 = arena.take(sz.rows * sz.widest);
  }
};

// y [tokens, vp]; the state goes from the chunk's start to its end if `advance`. No momentum: null.
template <class T>
inline void dual_forward(T* y, T* weights, T* momentum, const Chunk<T>& c, const Sizes& sz,
                         const OmegaOptions& options, const PolyMap<T>& map,
                         const Signals<T>& signals, const DualWork<T>& work, bool advance) {
  const int last = sz.last();
  scan_chunk(c, sz, momentum != nullptr);
  inside_forward(work.inside, c, sz, map, c.q, c.k, sz.kp, sz.key);
  for (int l = 0; l < sz.first_layer(); ++l)
    dual_read(sz.deep() ? work.queries.z[l] : y, c, sz, sz.matrix[l], c.u, weights, momentum,
              work.inside.coefficients, signals.d[l], work.reads);
  if (sz.deep()) {
    activate_hidden(work.queries, sz, options.activation, 0, c.tokens, false);
    inside_forward(work.inside, c, sz, PolyMap<T>{}, work.queries.h, signals.hidden.h, sz.fp,
                   sz.hidden);
    dual_read(y, c, sz, sz.matrix[last], work.queries.h, weights, momentum,
              work.inside.coefficients, signals.d[last], work.reads);
  }
  if (!advance) return;
  for (int l = 0; l < sz.matrices; ++l)
    dual_advance(weights, momentum, c, sz, sz.matrix[l], inputs_of(sz, l, c.x, signals.hidden),
                 signals.d[l], work.writes, work.writes2);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
