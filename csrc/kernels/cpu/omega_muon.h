// One chunk with Newton-Schulz inside the rule: S runs at every token, the memory is written at
// every ns_every-th (docs/math/omega_rule.md). A segment is a run of tokens that ends with a write
// or with the chunk; the state is live at segment ends only. Included by kernel bodies after
// isa_begin.h.
#pragma once
#include "kernels/cpu/newton_schulz_tile.h"
#include "kernels/cpu/omega_dual.h"

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

// S [D, vp] <- p S + sum_i A_i x_i e_iᵀ over one segment; S is uninitialised before the first one
// of a rule without momentum.
template <class T>
inline void advance_momentum(T* momentum, const Chunk<T>& c, const Sizes& sz,
                             const Segment& segment, const T* e, T* writes) {
  const int64_t from = first_row(c, segment, sz.window), to = c.overhang + segment.last + 1;
  scale_rows(writes + from * sz.vp, c.a + segment.last * sz.rp + from, e + from * sz.vp, to - from,
             sz.vp);
  gemm(sz.features, sz.value, to - from, transposed(c.x + from * sz.dp, sz.dp),
       writes + from * sz.vp, sz.vp, momentum, sz.vp, T(1), c.p[segment.last]);
}

template <class T>
struct MuonWork {
  T* writes;  // [rows, vp]
  T* o;       // [D, vp] NS(S)
  T* ns;

  MuonWork(Arena<T>& arena, const Sizes& sz, const OmegaOptions& options) {
    if (options.ns.steps == 0) return;
    writes = arena.take(sz.rows * sz.vp);
    o = arena.take(sz.features * sz.vp);
    ns = arena.take(newton_schulz_scratch<T>(sz.features, sz.value, options.ns.steps, false));
  }
};

// y [tokens, vp]; weights and momentum [D, vp] go from the chunk's start to its end.
template <class T>
inline void muon_forward(T* y, T* weights, T* momentum, const Chunk<T>& c, const Sizes& sz,
                         const OmegaOptions& options, bool with_momentum, const T* e,
                         const MuonWork<T>& work) {
  const int64_t size = sz.features * sz.vp;
  for (int64_t first = 0; first < c.tokens;) {
    const Segment segment = segment_from(c, first, options.ns_every);
    scan_segment(c, sz, segment, with_momentum);
    if (segment.writes || with_momentum) advance_momentum(momentum, c, sz, segment, e, work.writes);
    gemm(segment.reads_before(), sz.value, sz.features, plain(c.u + first * sz.dp, sz.dp), weights,
         sz.vp, y + first * sz.vp, sz.vp);
    scale_rows(y + first * sz.vp, c.m + first, y + first * sz.vp, segment.reads_before(), sz.vp);
    const T keep = c.m[segment.last];
    if (segment.writes) {
      newton_schulz_matrix(work.o, sz.vp, momentum, sz.vp, sz.features, sz.value, options.ns,
                           work.ns);
      const T eta = c.eta[segment.last];
      for (int64_t i = 0; i < size; ++i) weights[i] = keep * weights[i] - eta * work.o[i];
      gemm(1, sz.value, sz.features, plain(c.u + segment.last * sz.dp, sz.dp), weights, sz.vp,
           y + segment.last * sz.vp, sz.vp);
    } else {
      for (int64_t i = 0; i < size; ++i) weights[i] *= keep;
    }
    first = segment.last + 1;
  }
}

// States of one chunk at its segments, recomputed for the backward pass.
template <class T>
struct MuonBackwardWork {
  T* weights;   // [segments + 1, D, vp] M before each segment
  T* momentum;  // [segments + 1, D, vp] S before each segment
  T* o;         // [segments, D, vp] NS(S) at each segment's write
  T* writes;    // [rows, vp]
  T* rows;      // [V, dp]
  T* reads;     // [tokens, dp]
  T* grad_s;    // [D, vp]
  T* grad_o;    // [D, vp]
  T* ns;

  MuonBackwardWork(Arena<T>& arena, const Sizes& sz, const OmegaOptions& options) {
    if (options.ns.steps == 0) return;
    const int64_t segments = most_segments<T>(sz, options.ns_every), size = sz.features * sz.vp;
    weights = arena.take((segments + 1) * size);
    momentum = arena.take((segments + 1) * size);
    o = arena.take(segments * size);
    writes = arena.take(sz.rows * sz.vp);
    rows = arena.take(sz.value * sz.dp);
    reads = arena.take(sz.chunk * sz.dp);
    grad_s = arena.take(size);
    grad_o = arena.take(size);
    ns = arena.take(newton_schulz_scratch<T>(sz.features, sz.value, options.ns.steps, true));
  }
};

// Fills work.weights, work.momentum and work.o with the chunk's states; returns the number of
// segments.
template <class T>
inline int64_t muon_recompute(const Chunk<T>& c, const Sizes& sz, const OmegaOptions& options,
                              bool with_momentum, const T* weights, const T* momentum, const T* e,
                              const MuonBackwardWork<T>& work) {
  const int64_t size = sz.features * sz.vp;
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
    if (segment.writes || with_momentum) advance_momentum(s, c, sz, segment, e, work.writes);
    const T keep = c.m[segment.last];
    if (segment.writes) {
      T* o = work.o + n * size;
      newton_schulz_matrix(o, sz.vp, s, sz.vp, sz.features, sz.value, options.ns, work.ns);
      const T eta = c.eta[segment.last];
      for (int64_t i = 0; i < size; ++i) next[i] = keep * old[i] - eta * o[i];
    } else {
      for (int64_t i = 0; i < size; ++i) next[i] = keep * old[i];
    }
    first = segment.last + 1;
  }
  return n;
}

// Adjoint of S' = p S + sum_i A_i x_i e_iᵀ: g.momentum holds dS' on entry, dS on return.
template <class T>
inline void advance_momentum_backward(const ChunkGrads<T>& g, T* grad_s, const Chunk<T>& c,
                                      const Sizes& sz, const Segment& segment, const T* e,
                                      const MuonBackwardWork<T>& work) {
  const int64_t from = first_row(c, segment, sz.window), to = c.overhang + segment.last + 1;
  const T* a = c.a + segment.last * sz.rp;
  T* grad_a = g.gates.a + segment.last * sz.rp;
  gemm(to - from, sz.value, sz.features, plain(c.x + from * sz.dp, sz.dp), grad_s, sz.vp,
       work.writes + from * sz.vp, sz.vp);
  for (int64_t i = from; i < to; ++i) {
    const T* row = work.writes + i * sz.vp;
    grad_a[i] += dot(e + i * sz.vp, row, sz.value);
    axpy(g.e + i * sz.vp, a[i], row, sz.vp);
  }
  if (!g.wants_x) return;
  scale_rows(work.writes + from * sz.vp, a + from, e + from * sz.vp, to - from, sz.vp);
  transpose(work.rows, sz.dp, grad_s, sz.vp, sz.features, sz.value);
  gemm(to - from, sz.features, sz.value, plain(work.writes + from * sz.vp, sz.vp), work.rows, sz.dp,
       g.x + from * sz.dp, sz.dp, T(1), T(1));
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

// y_t = f_t M u_t for `tokens` tokens from `first`: adds to grad_u, f's gradient and dM.
template <class T>
inline void muon_backward_read(const ChunkGrads<T>& g, T* grad_factor, const Chunk<T>& c,
                               const Sizes& sz, int64_t first, int64_t tokens, const T* factor,
                               const T* weights, const MuonBackwardWork<T>& work) {
  if (tokens == 0) return;
  transpose(work.rows, sz.dp, weights, sz.vp, sz.features, sz.value);
  const T* grad_y = g.y + first * sz.vp;
  gemm(tokens, sz.features, sz.value, plain(grad_y, sz.vp), work.rows, sz.dp, work.reads, sz.dp);
  for (int64_t t = 0; t < tokens; ++t) {
    const T* read = work.reads + t * sz.dp;
    const T f = factor == nullptr ? T(1) : factor[t];
    if (factor != nullptr) grad_factor[t] += dot(read, c.u + (first + t) * sz.dp, sz.features);
    for (int64_t d = 0; d < sz.dp; ++d) g.u[(first + t) * sz.dp + d] = f * read[d];
    for (int64_t j = 0; j < sz.vp; ++j) work.writes[t * sz.vp + j] = f * grad_y[t * sz.vp + j];
  }
  gemm(sz.features, sz.value, tokens, transposed(c.u + first * sz.dp, sz.dp), work.writes, sz.vp,
       g.weights, sz.vp, T(1), T(1));
}

// Adjoint of muon_forward. weights, momentum [D, vp]: the state that enters the chunk.
template <class T>
inline void muon_backward(const ChunkGrads<T>& g, const Chunk<T>& c, const Sizes& sz,
                          const OmegaOptions& options, bool with_momentum, const T* weights,
                          const T* momentum, const T* e, const MuonBackwardWork<T>& work) {
  const int64_t size = sz.features * sz.vp;
  const int64_t segments =
      muon_recompute(c, sz, options, with_momentum, weights, momentum, e, work);
  fill_zero(g.e, c.rows() * sz.vp);
  fill_zero(g.x, c.rows() * sz.dp);
  fill_zero(g.gates.a, c.tokens * sz.rp);
  fill_zero(g.gates.p, c.tokens);
  fill_zero(g.gates.m, c.tokens);
  fill_zero(g.gates.eta, c.tokens);
  int64_t last = c.tokens - 1;
  for (int64_t n = segments - 1; n >= 0; --n) {
    Segment segment{last, last, (c.position + last + 1) % options.ns_every == 0};
    while (segment.first > 0 && (c.position + segment.first) % options.ns_every != 0)
      --segment.first;
    const T* old = work.weights + n * size;
    const T* s = work.momentum + (n + 1) * size;
    T* grad_s = with_momentum ? g.momentum : work.grad_s;
    if (segment.writes) {
      const T eta = c.eta[last];
      muon_backward_read(g, static_cast<T*>(nullptr), c, sz, last, 1,
                         static_cast<const T*>(nullptr), old + size, work);
      g.gates.eta[last] = -dot(g.weights, work.o + n * size, size);
      for (int64_t i = 0; i < size; ++i) work.grad_o[i] = -eta * g.weights[i];
      T* through_ns = with_momentum ? work.grad_s : grad_s;
      newton_schulz_matrix_backward(through_ns, sz.vp, work.grad_o, sz.vp, s, sz.vp, sz.features,
                                    sz.value, options.ns, work.ns);
      if (with_momentum)
        for (int64_t i = 0; i < size; ++i) grad_s[i] += through_ns[i];
    }
    g.gates.m[last] += dot(g.weights, old, size);
    for (int64_t i = 0; i < size; ++i) g.weights[i] *= c.m[last];
    muon_backward_read(g, g.gates.m + segment.first, c, sz, segment.first, segment.reads_before(),
                       c.m + segment.first, old, work);
    if (segment.writes || with_momentum) {
      advance_momentum_backward(g, grad_s, c, sz, segment, e, work);
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
