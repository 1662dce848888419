#pragma once
// One chunk with Newton-Schulz inside the rule: S runs at every token, the memory is written at
// every ns_every-th (docs/math/omega_rule.md, section 4). A segment is a run of tokens that ends
// with a write or with the chunk; the state is live at segment ends only.
#include "kernels/cuda/omega_memory.cuh"
#include "kernels/cuda/omega_newton_schulz.cuh"
#include "kernels/cuda/omega_states.cuh"

namespace atlas::kernels::cuda {

// Tokens [first, last] of the chunk; the memory is written at `last` if `writes`.
struct OmegaSegment {
  int first, last;
  bool writes;

  __device__ __forceinline__ int tokens() const { return last - first + 1; }
  // Tokens that read the old memory.
  __device__ __forceinline__ int reads_before() const { return writes ? tokens() - 1 : tokens(); }
};

__device__ __forceinline__ OmegaSegment segment_from(const OmegaOptions& o, const OmegaChunk& c,
                                                     int first) {
  const int64_t write = first + o.ns_every - 1 - (c.position + first) % o.ns_every;
  return {first, static_cast<int>(smaller(write, c.tokens - 1)), write < c.tokens};
}

__device__ __forceinline__ OmegaSegment segment_before(const OmegaOptions& o, const OmegaChunk& c,
                                                       int last) {
  const int64_t before = (c.position + last) % o.ns_every;  // tokens since the last write
  return {static_cast<int>(last - smaller(before, last)), last,
          (c.position + last + 1) % o.ns_every == 0};
}

// Window rows that the tokens of a segment see: [first_row, ...].
__device__ __forceinline__ int first_row(const OmegaOptions& o, const OmegaChunk& c,
                                         const OmegaSegment& segment) {
  return larger(0, c.overhang + segment.first - (o.window - 1));
}

// A_t of the segment's last token, and p_t, m_t, all restarted before its first token. a: one row,
// or (all_rows) rows [chunk, rp] of every token.
__device__ __forceinline__ void scan_segment(const OmegaWork& w, const OmegaOptions& o,
                                             const OmegaInputs& in, const OmegaSegment& segment,
                                             bool all_rows) {
  const OmegaChunk& c = w.chunk;
  const int rows = c.overhang + segment.last + 1, rp = o.sizes.rp;
  const int64_t gamma = gamma_offset(in, w.item, c);
  each(rows + 1, [&](int i) {
    if (i == rows) {
      float p = o.momentum ? 1.0f : 0.0f, m = 1;
      for (int t = segment.first; t <= segment.last; ++t) {
        w.p[t] = p *= w.theta[t];
        w.m[t] = m *= w.alpha[t];
      }
      return;
    }
    float a = 0;
    for (int t = segment.first; t <= segment.last; ++t) {
      a = w.theta[t] * a + band(in.gamma, gamma, c, o.window, t, i);
      if (all_rows) w.a[t * rp + i] = a;
    }
    if (!all_rows) w.a[i] = a;
  });
}

// S <- p S + sum_i A_i d_i x_iᵀ for all matrices over one segment; `a` is A of its last token.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void advance_momenta(float* momentum, const float* a, const OmegaWork& w,
                                                const OmegaOptions& o,
                                                const OmegaSegment& segment) {
  const OmegaChunk& c = w.chunk;
  const OmegaSizes& sz = o.sizes;
  const int from = first_row(o, c, segment), count = c.overhang + segment.last + 1 - from;
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    layer_write<kArithmetic>(momentum + m.at, w, o, l, w.k + from * sz.kp, w.h + from * sz.fp,
                             count, w.d[l] + from * m.ld, {1, w.p[segment.last], a + from});
  }
}

// y_t = f_t M(u_t) for `tokens` tokens from `first`, every matrix of M times f_t (null: 1), but for
// the residual. The queries' z stay in w.queries, their hidden layer in w.query_h.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void muon_read(float* y, const OmegaWork& w, const OmegaOptions& o,
                                          int first, int tokens, const float* factor,
                                          const Memory& weights) {
  if (tokens == 0) return;
  const OmegaSizes& sz = o.sizes;
  const float* const by = factor == nullptr ? nullptr : factor + first;
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    if (!sees_phi(o, l)) {
      const int at = first * sz.fp;
      hidden_layer(w.query_h + at, w.queries[0] + at, is_gated(o) ? w.queries[1] + at : nullptr,
                   sz.fp, tokens, o);
      __syncthreads();
    }
    float* const out = l == last_matrix(o) ? y : w.queries[l];
    layer_read<kArithmetic>(out + first * m.ld, w, o, l, w.q + first * sz.kp,
                            w.query_h + first * sz.fp, tokens, weights.matrix[l],
                            {1, 0, nullptr, by});
  }
}

// Calls use(at, value) for every element of NS(S), matrix by matrix. A barrier comes before; after
// it by the caller.
template <Arithmetic kArithmetic, class Use>
__device__ __forceinline__ void each_orthogonal(const float* momentum, const OmegaWork& w,
                                                const OmegaOptions& o, const Use& use) {
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    const float* const x =
        block_newton_schulz<kArithmetic>(momentum + m.at, m, o.schedule, w.ns, w.squares, w.line);
    const float scale = o.ns_scales[l];
    each(m.in, m.out, [&](int i, int j) {
      const int at = i * m.ld + j;
      use(m.at + at, scale * x[at]);
    });
  }
}

// w.y [tokens, vp]; the state goes from the chunk's start to its end.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void muon_forward(const OmegaWork& w, const OmegaOptions& o,
                                             const OmegaInputs& in) {
  const OmegaChunk& c = w.chunk;
  for (int first = 0; first < c.tokens;) {
    const OmegaSegment segment = segment_from(o, c, first);
    scan_segment(w, o, in, segment, false);
    __syncthreads();
    if (segment.writes || o.momentum) advance_momenta<kArithmetic>(w.momentum, w.a, w, o, segment);
    muon_read<kArithmetic>(w.y, w, o, first, segment.reads_before(), w.m, w.before);
    const float keep = w.m[segment.last];
    if (segment.writes) {
      const float eta = w.eta[segment.last];
      each_orthogonal<kArithmetic>(w.momentum, w, o, [&](int at, float value) {
        w.weights[at] = keep * w.weights[at] - eta * value;
      });
      __syncthreads();
      muon_read<kArithmetic>(w.y, w, o, segment.last, 1, nullptr, w.before);
    } else {
      each_weight(o, [&](int at) { w.weights[at] *= keep; });
      __syncthreads();
    }
    first = segment.last + 1;
  }
}

}  // namespace atlas::kernels::cuda
