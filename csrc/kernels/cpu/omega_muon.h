// One chunk with Newton-Schulz inside the rule: S runs at every token, the memory is written at
// every ns_every-th (docs/math/omega_rule.md). A segment is a run of tokens that ends with a write
// or with the chunk; the state is live at segment ends only. Included by kernel bodies after
// isa_begin.h.
#pragma once
#include "kernels/cpu/newton_schulz_tile.h"
#include "kernels/cpu/omega_causal.h"
#include "kernels/cpu/omega_memory.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// Tokens [first, last] of the chunk; the memory is written at `last` if `writes`.
struct Segment {
  int64_t first, last;
  bool writes;

  int64_t tokens() const { return last - first + 1; }
  int64_t reads_before() const {
    return writes ? tokens() - 1 : tokens();
  }  // tokens that read the old memory
};

template <class T>
ATLAS_INLINE Segment segment_from(const Chunk<T>& c, int64_t first, int64_t every) {
  const int64_t write = first + every - 1 - (c.position + first) % every;
  return {first, smaller(write, c.tokens - 1), write < c.tokens};
}

template <class T>
ATLAS_INLINE int64_t most_segments(const Sizes& sz, int64_t every) {
  return (sz.chunk + every - 1) / every + 1;
}

// Window rows that the tokens of a segment see.
template <class T>
ATLAS_INLINE int64_t first_row(const Chunk<T>& c, const Segment& segment, int64_t window) {
  return larger(0, c.overhang + segment.first - (window - 1));
}

// A_t, p_t and m_t restarted at every segment: A_{-1} = 0, p_{-1} = m_{-1} = 1 before its first
// token.
template <class T>
inline void scan_segment(const Chunk<T>& c, const Sizes& sz, const Segment& segment,
                         bool momentum) {
  T p = 1, m = 1;
  for (int64_t t = segment.first; t <= segment.last; ++t) {
    const int64_t count = c.overhang + t + 1;
    T* a = c.a + t * sz.rp;
    fill_zero(a, count);
    if (t > segment.first && momentum) axpy(a, c.theta[t], a - sz.rp, count - 1);
    add_gamma(a, c.gamma + t * sz.window, sz.window, count);
    c.p[t] = p = momentum ? p * c.theta[t] : T(0);
    c.m[t] = m = m * c.alpha[t];
  }
}

// S <- p S + sum_i A_i d_i x_iᵀ for one matrix over one segment; S is uninitialised before the
// first one of a rule without momentum.
template <class T>
inline void advance_momentum(T* momentum, const Chunk<T>& c, const Sizes& sz, const MatrixSizes& m,
                             const Segment& segment, const T* x, const T* d, T* writes) {
  const int64_t from = first_row(c, segment, sz.window), to = c.overhang + segment.last + 1;
  scale_rows(writes + from * m.op, c.a + segment.last * sz.rp + from, d + from * m.op, to - from,
             m.op);
  gemm(m.in, m.out, to - from, transposed(x + from * m.ip, m.ip), writes + from * m.op, m.op,
       momentum + m.at, m.op, T(1), c.p[segment.last]);
}

template <class T>
inline void advance_momenta(T* momentum, const Chunk<T>& c, const Sizes& sz, const Segment& segment,
                            const Signals<T>& signals, T* writes) {
  for (int l = 0; l < sz.matrices; ++l)
    advance_momentum(momentum, c, sz, sz.matrix[l], segment, inputs_of(sz, l, c.x, signals.hidden),
                     signals.d[l], writes);
}

// y_t = f_t M(u_t) for `tokens` tokens from `first`, every matrix of M times f_t (null: 1). The
// queries' hidden layer stays in `queries`, with slopes if asked for.
template <class T>
inline void muon_read(T* y, const Hidden<T>& queries, const Chunk<T>& c, const Sizes& sz,
                      const OmegaOptions& options, int64_t first, int64_t tokens, const T* factor,
                      const T* weights, bool slopes) {
  if (tokens == 0) return;
  for (int l = 0; l < sz.matrices; ++l) {
    const MatrixSizes& m = sz.matrix[l];
    if (sz.deep() && l == sz.last())
      activate_hidden(queries, sz, options.activation, first, tokens, slopes);
    T* out = l == sz.last() ? y : queries.z[l];
    if (out == nullptr) return;
    out += first * m.op;
    gemm(tokens, m.out, m.in, plain(inputs_of(sz, l, c.u, queries) + first * m.ip, m.ip),
         weights + m.at, m.op, out, m.op);
    if (factor != nullptr) scale_rows(out, factor + first, out, tokens, m.op);
  }
}

// O = NS(S), matrix by matrix.
template <class T>
inline void orthogonalise(T* o, const T* momentum, const Sizes& sz, const OmegaOptions& options,
                          T* scratch) {
  for (int l = 0; l < sz.matrices; ++l) {
    const MatrixSizes& m = sz.matrix[l];
    newton_schulz_matrix(o + m.at, m.op, momentum + m.at, m.op, m.in, m.out, options.ns_of(l),
                         scratch);
  }
}

template <class T>
inline int64_t orthogonalise_scratch(const Sizes& sz, const OmegaOptions& options, bool backward) {
  int64_t most = 0;
  for (int l = 0; l < sz.matrices; ++l)
    most = larger(most, newton_schulz_scratch<T>(sz.matrix[l].in, sz.matrix[l].out,
                                                 options.ns.steps, backward));
  return most;
}

template <class T>
struct MuonWork {
  Hidden<T> queries;
  T* writes;  // [rows, widest]
  T* o;       // a state: NS(S)
  T* ns;

  MuonWork(Arena<T>& arena, const Sizes& sz, const OmegaOptions& options)
      : queries(arena, sz, options.ns.steps > 0 ? sz.chunk : 0) {
    if (options.ns.steps == 0) return;
    writes = arena.take(sz.rows * sz.widest);
    o = arena.take(sz.state);
    ns = arena.take(orthogonalise_scratch<T>(sz, options, false));
  }
};

// y [tokens, vp]; weights and momentum (states) go from the chunk's start to its end.
template <class T>
inline void muon_forward(T* y, T* weights, T* momentum, const Chunk<T>& c, const Sizes& sz,
                         const OmegaOptions& options, bool with_momentum, const Signals<T>& signals,
                         const MuonWork<T>& work) {
  const T* const none = nullptr;
  for (int64_t first = 0; first < c.tokens;) {
    const Segment segment = segment_from(c, first, options.ns_every);
    scan_segment(c, sz, segment, with_momentum);
    if (segment.writes || with_momentum)
      advance_momenta(momentum, c, sz, segment, signals, work.writes);
    muon_read(y, work.queries, c, sz, options, first, segment.reads_before(), c.m, weights, false);
    const T keep = c.m[segment.last];
    if (segment.writes) {
      orthogonalise(work.o, momentum, sz, options, work.ns);
      const T eta = c.eta[segment.last];
      for (int64_t i = 0; i < sz.state; ++i) weights[i] = keep * weights[i] - eta * work.o[i];
      muon_read(y, work.queries, c, sz, options, segment.last, 1, none, weights, false);
    } else {
      for (int64_t i = 0; i < sz.state; ++i) weights[i] *= keep;
    }
    first = segment.last + 1;
  }
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
