// Adjoint of a chunk with Newton-Schulz inside the rule: its states are made anew at the segments'
// ends, then differentiated last to first (docs/math/omega_rule.md, sections 6 and 7). Included by
// kernel bodies after isa_begin.h.
#pragma once
#include "kernels/cpu/omega_dual_backward.h"
#include "kernels/cpu/omega_muon.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// States of one chunk at its segments, recomputed for the backward pass.
template <class T>
struct MuonBackwardWork {
  Hidden<T> queries;
  T* weights;   // [segments + 1] states: M before each segment
  T* momentum;  // [segments + 1] states: S before each segment
  T* o;         // [segments] states: NS(S) at each segment's write
  T* writes;    // [max(rows, tokens), widest]
  T* rows;      // one matrix, as [out, ip]
  T* reads;     // [tokens, widest]
  T* grad_s;    // a state
  T* grad_o;    // a state
  T* ns;

  MuonBackwardWork(Arena<T>& arena, const Sizes& sz, const OmegaOptions& options)
      : queries(arena, sz, options.ns.steps > 0 ? sz.chunk : 0) {
    if (options.ns.steps == 0) return;
    const int64_t segments = most_segments<T>(sz, options.ns_every);
    int64_t most = 0;
    for (int l = 0; l < sz.matrices; ++l) most = larger(most, sz.matrix[l].out * sz.matrix[l].ip);
    weights = arena.take((segments + 1) * sz.state);
    momentum = arena.take((segments + 1) * sz.state);
    o = arena.take(segments * sz.state);
    writes = arena.take(sz.rows * sz.widest);
    rows = arena.take(most);
    reads = arena.take(sz.chunk * sz.widest);
    grad_s = arena.take(sz.state);
    grad_o = arena.take(sz.state);
    ns = arena.take(orthogonalise_scratch<T>(sz, options, true));
  }
};

// Fills work.weights, work.momentum and work.o with the chunk's states; returns the number of
// segments.
template <class T>
inline int64_t muon_recompute(const Chunk<T>& c, const Sizes& sz, const OmegaOptions& options,
                              bool with_momentum, const T* weights, const T* momentum,
                              const Signals<T>& signals, const MuonBackwardWork<T>& work) {
  const int64_t size = sz.state;
  __builtin_memcpy(work.weights, weights, size * sizeof(T));
  if (with_momentum) __builtin_memcpy(work.momentum, momentum, size * sizeof(T));
  int64_t n = 0;
  for (int64_t first = 0; first < c.tokens; ++n) {
    const Segment segment = segment_from(c, first, options.ns_every);
    scan_segment(c, sz, segment, with_momentum);
    const T* old = work.weights + n * size;
    T* next = work.weights + (n + 1) * size;
    T* s = work.momentum + (n + 1) * size;
    if (with_momentum) __builtin_memcpy(s, s - size, size * sizeof(T));
    if (segment.writes || with_momentum) advance_momenta(s, c, sz, segment, signals, work.writes);
    const T keep = c.m[segment.last];
    if (segment.writes) {
      T* o = work.o + n * size;
      orthogonalise(o, s, sz, options, work.ns);
      const T eta = c.eta[segment.last];
      for (int64_t i = 0; i < size; ++i) next[i] = keep * old[i] - eta * o[i];
    } else {
      for (int64_t i = 0; i < size; ++i) next[i] = keep * old[i];
    }
    first = segment.last + 1;
  }
  return n;
}

// Adjoint of S' = p S + sum_i A_i d_i x_iᵀ for one matrix; grad_s is the adjoint of S', left alone.
// grad_x (null: not wanted) and grad_d are added to.
template <class T>
inline void advance_momentum_backward(const ChunkGrads<T>& g, T* grad_d, T* grad_x, const T* grad_s,
                                      const Chunk<T>& c, const Sizes& sz, const MatrixSizes& m,
                                      const Segment& segment, const T* x, const T* d,
                                      const MuonBackwardWork<T>& work) {
  const int64_t from = first_row(c, segment, sz.window), to = c.overhang + segment.last + 1;
  const T* a = c.a + segment.last * sz.rp;
  T* grad_a = g.gates.a + segment.last * sz.rp;
  gemm(to - from, m.out, m.in, plain(x + from * m.ip, m.ip), grad_s + m.at, m.op,
       work.writes + from * m.op, m.op);
  for (int64_t i = from; i < to; ++i) {
    const T* row = work.writes + i * m.op;
    grad_a[i] += dot(d + i * m.op, row, m.out);
    axpy(grad_d + i * m.op, a[i], row, m.op);
  }
  if (grad_x == nullptr) return;
  scale_rows(work.writes + from * m.op, a + from, d + from * m.op, to - from, m.op);
  transpose(work.rows, m.ip, grad_s + m.at, m.op, m.in, m.out);
  gemm(to - from, m.in, m.out, plain(work.writes + from * m.op, m.op), work.rows, m.ip,
       grad_x + from * m.ip, m.ip, T(1), T(1));
}

// Adjoint of the scan of one segment: gates.a, p, m hold what reaches A_t, p_t, m_t from outside
// the scan.
template <class T>
inline void scan_segment_backward(const GateGrads<T>& g, const Chunk<T>& c, const Sizes& sz,
                                  const Segment& segment, bool momentum) {
  for (int64_t t = segment.last; t >= segment.first; --t) {
    const int64_t count = c.overhang + t + 1;
    const bool inside = t > segment.first;
    T* ga = g.a + t * sz.rp;
    g.alpha[t] = g.m[t] * (inside ? c.m[t - 1] : T(1)) * c.alpha[t];
    T theta = g.p[t] * (inside ? c.p[t - 1] : T(1));
    if (inside) {
      g.m[t - 1] += c.alpha[t] * g.m[t];
      if (momentum) {
        theta += dot(ga, c.a + (t - 1) * sz.rp, count - 1);
        axpy(ga - sz.rp, c.theta[t], ga, count - 1);
        g.p[t - 1] += c.theta[t] * g.p[t];
      }
    }
    g.theta[t] = theta * c.theta[t];
  }
}

// y_t = f_t W u_t of one matrix for `tokens` tokens from `first`; factor null: 1. grad_y, u and
// grad_u are whole chunks; grad_u, f's gradient and dM are added to.
template <class T>
inline void matrix_read_backward(T* grad_state, T* grad_u, T* grad_factor, const MatrixSizes& m,
                                 const T* grad_y, const T* u, int64_t first, int64_t tokens,
                                 const T* factor, const T* weights,
                                 const MuonBackwardWork<T>& work) {
  transpose(work.rows, m.ip, weights + m.at, m.op, m.in, m.out);
  grad_y += first * m.op;
  gemm(tokens, m.in, m.out, plain(grad_y, m.op), work.rows, m.ip, work.reads, m.ip);
  for (int64_t t = 0; t < tokens; ++t) {
    const T* read = work.reads + t * m.ip;
    const T f = factor == nullptr ? T(1) : factor[first + t];
    if (factor != nullptr) grad_factor[first + t] += dot(read, u + (first + t) * m.ip, m.in);
    axpy(grad_u + (first + t) * m.ip, f, read, m.in);
    for (int64_t j = 0; j < m.op; ++j) work.writes[t * m.op + j] = f * grad_y[t * m.op + j];
  }
  gemm(m.in, m.out, tokens, transposed(u + first * m.ip, m.ip), work.writes, m.op,
       grad_state + m.at, m.op, T(1), T(1));
}

// Adjoint of muon_read, whose hidden layer is computed anew.
template <class T>
inline void muon_read_backward(const ChunkGrads<T>& g, const Chunk<T>& c, const Sizes& sz,
                               const OmegaOptions& options, int64_t first, int64_t tokens,
                               const T* factor, const T* weights, const MuonBackwardWork<T>& work) {
  if (tokens == 0) return;
  T* const no_output = nullptr;
  if (sz.deep()) {
    const MatrixSizes& m = sz.matrix[sz.last()];
    muon_read(no_output, work.queries, c, sz, options, first, tokens, factor, weights, true);
    fill_zero(g.hidden + first * sz.fp, tokens * sz.fp);
    matrix_read_backward(g.weights, g.hidden, g.gates.m, m, g.y, work.queries.h, first, tokens,
                         factor, weights, work);
    activate_hidden_backward(g.z, g.hidden, work.queries, sz, first, tokens);
  }
  for (int l = 0; l < sz.first_layer(); ++l)
    matrix_read_backward(g.weights, g.u, g.gates.m, sz.matrix[l], sz.deep() ? g.z[l] : g.y, c.u,
                         first, tokens, factor, weights, work);
}

// Adjoint of the write O = NS(S), M' = m M - eta O at the segment's last token: adds to grad_s.
template <class T>
inline void muon_write_backward(const ChunkGrads<T>& g, T* grad_s, const Chunk<T>& c,
                                const Sizes& sz, const OmegaOptions& options, int64_t token,
                                bool with_momentum, const T* s, const T* o,
                                const MuonBackwardWork<T>& work) {
  const T eta = c.eta[token];
  g.gates.eta[token] = -dot(g.weights, o, sz.state);
  for (int64_t i = 0; i < sz.state; ++i) work.grad_o[i] = -eta * g.weights[i];
  T* through_ns = with_momentum ? work.grad_s : grad_s;
  for (int l = 0; l < sz.matrices; ++l) {
    const MatrixSizes& m = sz.matrix[l];
    newton_schulz_matrix_backward(through_ns + m.at, m.op, work.grad_o + m.at, m.op, s + m.at, m.op,
                                  m.in, m.out, options.ns_of(l), work.ns);
  }
  if (with_momentum)
    for (int64_t i = 0; i < sz.state; ++i) grad_s[i] += through_ns[i];
}

template <class T>
inline void muon_backward_begin(const ChunkGrads<T>& g, const Chunk<T>& c, const Sizes& sz) {
  for (int l = 0; l < sz.matrices; ++l) fill_zero(g.d[l], c.rows() * sz.matrix[l].op);
  if (sz.deep()) fill_zero(g.h, c.rows() * sz.fp);
  fill_zero(g.x, c.rows() * sz.dp);
  fill_zero(g.u, c.tokens * sz.dp);
  fill_zero(g.gates.a, c.tokens * sz.rp);
  fill_zero(g.gates.p, c.tokens);
  fill_zero(g.gates.m, c.tokens);
  fill_zero(g.gates.eta, c.tokens);
}

// Adjoint of muon_forward. weights, momentum: the states that enter the chunk.
template <class T>
inline void muon_backward(const ChunkGrads<T>& g, const Chunk<T>& c, const Sizes& sz,
                          const OmegaOptions& options, bool with_momentum, const T* weights,
                          const T* momentum, const Signals<T>& signals,
                          const MuonBackwardWork<T>& work) {
  const int64_t size = sz.state;
  const T* const none = nullptr;
  const int64_t segments =
      muon_recompute(c, sz, options, with_momentum, weights, momentum, signals, work);
  muon_backward_begin(g, c, sz);
  int64_t last = c.tokens - 1;
  for (int64_t n = segments - 1; n >= 0; --n) {
    Segment segment{last, last, (c.position + last + 1) % options.ns_every == 0};
    while (segment.first > 0 && (c.position + segment.first) % options.ns_every != 0)
      --segment.first;
    const T* old = work.weights + n * size;
    const T* s = work.momentum + (n + 1) * size;
    T* grad_s = with_momentum ? g.momentum : work.grad_s;
    if (segment.writes) {
      muon_read_backward(g, c, sz, options, last, 1, none, old + size, work);
      muon_write_backward(g, grad_s, c, sz, options, last, with_momentum, s, work.o + n * size,
                          work);
    }
    g.gates.m[last] += dot(g.weights, old, size);
    for (int64_t i = 0; i < size; ++i) g.weights[i] *= c.m[last];
    muon_read_backward(g, c, sz, options, segment.first, segment.reads_before(), c.m, old, work);
    if (segment.writes || with_momentum) {
      for (int l = 0; l < sz.matrices; ++l) {
        T* grad_x = l < sz.first_layer() ? (g.wants_x ? g.x : nullptr) : g.h;
        advance_momentum_backward(g, g.d[l], grad_x, grad_s, c, sz, sz.matrix[l], segment,
                                  inputs_of(sz, l, c.x, signals.hidden), signals.d[l], work);
      }
      if (with_momentum) {
        g.gates.p[last] += dot(grad_s, s - size, size);
        for (int64_t i = 0; i < size; ++i) grad_s[i] *= c.p[last];
      }
    }
    scan_segment_backward(g.gates, c, sz, segment, with_momentum);
    last = segment.first - 1;
  }
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
