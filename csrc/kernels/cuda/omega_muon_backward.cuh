#pragma once
// Adjoint of a chunk with Newton-Schulz inside the rule: its states are made anew at the segments'
// ends, then differentiated last to first (docs/math/omega_rule.md, sections 6 and 7).
#include "kernels/cuda/omega_memory_backward.cuh"
#include "kernels/cuda/omega_muon.cuh"

namespace atlas::kernels::cuda {

// Fills g.segment_weights, g.segment_momentum and g.segment_orthogonal with the chunk's states;
// returns the number of segments. Their first ones are there already.
template <Arithmetic kArithmetic>
__device__ __forceinline__ int muon_recompute(const OmegaWork& w, const OmegaGrads& g,
                                              const OmegaOptions& o, const OmegaInputs& in) {
  const int64_t size = o.sizes.state;
  int n = 0;
  for (int first = 0; first < w.chunk.tokens; ++n) {
    const OmegaSegment segment = segment_from(o, w.chunk, first);
    const float* const old = g.segment_weights + n * size;
    float* const next = g.segment_weights + (n + 1) * size;
    float* const s = g.segment_momentum + (n + 1) * size;
    scan_segment(w, o, in, segment, true);
    each_weight(o, [&](int at) { s[at] = o.momentum ? s[at - size] : 0.0f; });
    __syncthreads();
    if (segment.writes || o.momentum)
      advance_momenta<kArithmetic>(s, w.a + segment.last * o.sizes.rp, w, o, segment);
    const float keep = w.m[segment.last];
    if (segment.writes) {
      float* const orthogonal = g.segment_orthogonal + n * size;
      const float eta = w.eta[segment.last];
      each_orthogonal<kArithmetic>(s, w, o, [&](int at, float value) {
        orthogonal[at] = value;
        next[at] = keep * old[at] - eta * value;
      });
    } else {
      each_weight(o, [&](int at) { next[at] = keep * old[at]; });
    }
    __syncthreads();
    first = segment.last + 1;
  }
  return n;
}

// Adjoint of muon_read of `tokens` tokens from `first`, whose hidden layer is computed anew:
// adds to g.q, g.m and g.weights. factor null: 1.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void muon_read_backward(const OmegaWork& w, const OmegaGrads& g,
                                                   const OmegaOptions& o, int first, int tokens,
                                                   const float* factor, const float* state) {
  if (tokens == 0) return;
  const OmegaSizes& sz = o.sizes;
  const int last = last_matrix(o);
  const float* const by = factor == nullptr ? nullptr : factor + first;
  const float* const queries = w.q + first * sz.kp;
  const float* const hidden = w.query_h + first * sz.fp;
  const auto matrix = [&](int l) { return plain(state + sz.matrix[l].at, sz.matrix[l].ld); };
  const auto grad_y = [&](int l) {
    return (is_deep(o) && sees_phi(o, l) ? g.queries[l] : g.y) + first * sz.matrix[l].ld;
  };
  // What one matrix contributes beside its inputs' gradient.
  const auto matrix_backward = [&](int l) {
    const OmegaMatrix& m = sz.matrix[l];
    if (factor != nullptr) {
      layer_read<kArithmetic>(g.wide, w, o, l, queries, hidden, tokens, matrix(l), {});
      each_dot(tokens, m.out, grad_y(l), m.ld, g.wide, m.ld,
               [&](int t, float dot) { g.m[first + t] += dot; });
      __syncthreads();
    }
    layer_write<kArithmetic>(g.weights + m.at, w, o, l, queries, hidden, tokens, grad_y(l),
                             {1, 1, by});
  };
  if (is_deep(o)) {
    for (int l = 0; l < sz.first_layer; ++l)
      layer_read<kArithmetic>(w.queries[l] + first * sz.fp, w, o, l, queries, hidden, tokens,
                              matrix(l), {1, 0, nullptr, by});
    const int at = first * sz.fp;
    hidden_layer(w.query_h + at, w.queries[0] + at, is_gated(o) ? w.queries[1] + at : nullptr,
                 sz.fp, tokens, o);
    __syncthreads();
    const View top = matrix(last);
    product<kArithmetic>(g.query_h + at, sz.fp, tokens, o.hidden, o.value,
                         plain(grad_y(last), sz.vp), {top.at, top.column, top.row},
                         {1, 0, nullptr, by});
    matrix_backward(last);
    hidden_layer_backward(w, g, o, first, tokens);
    __syncthreads();
  }
  for (int l = 0; l < sz.first_layer; ++l) matrix_backward(l);
  if (!g.wants_u) return;
  lifted_backward(
      w, g, o, g.q + first * sz.kp, queries, tokens, [&](float* out, int ld, int begin, int count) {
        for (int l = 0; l < sz.first_layer; ++l)
          back_through<kArithmetic>(out, ld, tokens, begin, count, grad_y(l), sz.matrix[l].ld,
                                    sz.matrix[l].out, matrix(l), 1, by);
      });
}

// Adjoint of the write O = NS(S), M' = m M - eta O at the segment's last token: adds to grad_s.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void muon_write_backward(const OmegaWork& w, const OmegaGrads& g,
                                                    const OmegaOptions& o, int token, float* grad_s,
                                                    const float* s, const float* orthogonal) {
  const float eta = w.eta[token];
  float dot = 0;
  each_weight(o, [&](int at) {
    dot += g.weights[at] * orthogonal[at];
    g.grad_o[at] = -eta * g.weights[at];
  });
  dot = block_sum(dot, w.line);
  if (thread_id() == 0) g.eta[token] = -dot;
  float* const through = g.grad_s;  // without a momentum this is grad_s itself
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    block_newton_schulz_backward<kArithmetic>(through + m.at, g.grad_o + m.at, s + m.at, m,
                                              o.schedule, o.ns_scales[l], w.ns, w.squares, g.tape,
                                              o.sizes.largest, w.line);
  }
  if (!o.momentum) return;
  each_weight(o, [&](int at) { grad_s[at] += through[at]; });
  __syncthreads();
}

// Adjoint of S' = p S + sum_i A_i d_i x_iᵀ over one segment; grad_s is that of S'. Adds to g.d,
// g.h and grad_k, and begins g.a_last.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void advance_momenta_backward(const OmegaWork& w, const OmegaGrads& g,
                                                         const OmegaOptions& o,
                                                         const OmegaSegment& segment,
                                                         const float* grad_s, float* grad_k) {
  const OmegaSizes& sz = o.sizes;
  const int from = first_row(o, w.chunk, segment),
            count = w.chunk.overhang + segment.last + 1 - from;
  const float* const a = w.a + segment.last * sz.rp + from;
  const float* const keys = w.k + from * sz.kp;
  const float* const hidden = w.h + from * sz.fp;
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = sz.matrix[l];
    const View grads = plain(grad_s + m.at, m.ld);
    const float* const d = w.d[l] + from * m.ld;
    float* const grad_d = g.d[l] + from * m.ld;
    layer_read<kArithmetic>(g.wide, w, o, l, keys, hidden, count, grads, {});
    each_dot(count, m.out, d, m.ld, g.wide, m.ld,
             [&](int i, float dot) { g.a_last[from + i] += dot; });
    each(count, m.out, [&](int i, int j) {
      const int at = i * m.ld + j;
      grad_d[at] += a[i] * g.wide[at];
    });
    __syncthreads();
    if (!sees_phi(o, l))
      back_through<kArithmetic>(g.h + from * sz.fp, sz.fp, count, 0, m.in, d, m.ld, m.out, grads, 1,
                                a);
  }
  if (!g.wants_x) return;
  lifted_backward(
      w, g, o, grad_k + from * sz.kp, keys, count, [&](float* out, int ld, int begin, int columns) {
        for (int l = 0; l < sz.first_layer; ++l) {
          const OmegaMatrix& m = sz.matrix[l];
          back_through<kArithmetic>(out, ld, count, begin, columns, w.d[l] + from * m.ld, m.ld,
                                    m.out, plain(grad_s + m.at, m.ld), 1, a);
        }
      });
}

// Adjoint of the scan of one segment: g.pair's rows become the gradient of Gamma. A barrier comes
// before and after.
__device__ __forceinline__ void segment_scan_backward(const OmegaWork& w, const OmegaGrads& g,
                                                      const OmegaOptions& o,
                                                      const OmegaSegment& segment) {
  const int rp = o.sizes.rp, rows = w.chunk.overhang + segment.last + 1;
  each(rows + 1, [&](int i) {
    if (i == rows) {
      float p = 0, m = 0;
      for (int t = segment.last; t >= segment.first; --t) {
        const bool inside = t > segment.first;
        p = g.p[t] + (t < segment.last ? w.theta[t + 1] * p : 0.0f);
        m = g.m[t] + (t < segment.last ? w.alpha[t + 1] * m : 0.0f);
        g.alpha[t] = m * (inside ? w.m[t - 1] : 1.0f) * w.alpha[t];
        g.theta[t] = p * (inside ? w.p[t - 1] : 1.0f);
      }
      return;
    }
    float a = g.a_last[i];
    for (int t = segment.last; t >= segment.first && i <= w.chunk.overhang + t; --t) {
      g.pair[t * rp + i] = a;
      a *= w.theta[t];
    }
  });
  __syncthreads();
  for (int t = segment.first + thread_id() / kWarp; t <= segment.last;
       t += block_threads() / kWarp) {
    float theta = 0;
    if (t > segment.first)
      for (int i = lane_id(); i < w.chunk.overhang + t; i += kWarp)
        theta += g.pair[t * rp + i] * w.a[(t - 1) * rp + i];
    theta = group_sum(theta);
    if (lane_id() == 0) g.theta[t] = w.theta[t] * (g.theta[t] + theta);
  }
  __syncthreads();
}

// Adjoint of muon_forward, the states included; grad_k [rows, kp] is added to.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void muon_backward(const OmegaWork& w, const OmegaGrads& g,
                                              const OmegaOptions& o, const OmegaInputs& in,
                                              float* grad_k) {
  const OmegaSizes& sz = o.sizes;
  const int64_t size = sz.state;
  const int rows = w.chunk.rows;
  const int segments = muon_recompute<kArithmetic>(w, g, o, in);
  for (int l = 0; l < o.matrices; ++l)
    each(rows, sz.matrix[l].out, [&](int i, int j) { g.d[l][i * sz.matrix[l].ld + j] = 0; });
  if (is_deep(o)) each(rows, o.hidden, [&](int i, int j) { g.h[i * sz.fp + j] = 0; });
  each(w.chunk.tokens, [&](int t) { g.p[t] = g.m[t] = g.eta[t] = 0; });
  __syncthreads();
  int last = w.chunk.tokens - 1;
  for (int n = segments - 1; n >= 0; --n) {
    const OmegaSegment segment = segment_before(o, w.chunk, last);
    const float* const old = g.segment_weights + n * size;
    const float* const s = g.segment_momentum + (n + 1) * size;
    float* const grad_s = o.momentum ? g.momentum : g.grad_s;
    if (segment.writes) {
      muon_read_backward<kArithmetic>(w, g, o, last, 1, nullptr, old + size);
      muon_write_backward<kArithmetic>(w, g, o, last, grad_s, s, g.segment_orthogonal + n * size);
    }
    const float keep = w.m[last], decay = w.p[last];
    float by_m = 0, by_p = 0;
    each_weight(o, [&](int at) {
      by_m += g.weights[at] * old[at];
      g.weights[at] *= keep;
    });
    by_m = block_sum(by_m, w.line);
    if (thread_id() == 0) g.m[last] += by_m;
    each(rows, [&](int i) { g.a_last[i] = 0; });
    __syncthreads();
    muon_read_backward<kArithmetic>(w, g, o, segment.first, segment.reads_before(), w.m, old);
    if (segment.writes || o.momentum) {
      advance_momenta_backward<kArithmetic>(w, g, o, segment, grad_s, grad_k);
      if (o.momentum) {
        each_weight(o, [&](int at) {
          by_p += grad_s[at] * s[at - size];
          grad_s[at] *= decay;
        });
        by_p = block_sum(by_p, w.line);
        if (thread_id() == 0) g.p[last] += by_p;
      }
    }
    __syncthreads();
    segment_scan_backward(w, g, o, segment);
    last = segment.first - 1;
  }
  signals_backward<kArithmetic>(w, g, o);
  if (g.wants_x)
    lifted_backward(w, g, o, grad_k, w.k, rows, [&](float* out, int ld, int first, int count) {
      signals_to_inputs<kArithmetic>(w, g, o, out, ld, first, count);
    });
}

}  // namespace atlas::kernels::cuda
