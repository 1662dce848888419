#pragma once
// Adjoint of the dual form of one chunk (docs/math/omega_rule.md, sections 5 and 7). g.weights and
// g.momentum are the gradients of what the chunk leaves until dual_backward_states, which comes
// last. The walk over a linear memory's states (OmegaStage::states) needs few of these products.
#include "kernels/cuda/omega_dual.cuh"
#include "kernels/cuda/omega_memory_backward.cuh"

namespace atlas::kernels::cuda {

// Of the kernel of a score with respect to the score.
__device__ __forceinline__ float kernel_slope(const float* scales, int degree, float score) {
  if (degree == 0) return 1;
  float slope = 0;
  for (int l = degree; l >= 1; --l)
    slope = slope * score + static_cast<float>(l) * scales[l] * scales[l];
  return slope;
}

// The read of matrix l inside the chunk, y_t -= sum_i Cf_ti kernel_ti d_i: adds to (or begins) g.cf
// and the kernel's gradient, and leaves -Cf kernel in g.pairs[l]. scores: raw, [chunk, rp]. A
// barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void inside_to_pairs(const OmegaWork& w, const OmegaGrads& g,
                                                const OmegaOptions& o, int l, const float* grad_y,
                                                const float* scores, int degree, float* grad_kernel,
                                                bool begins_cf, bool begins_kernel) {
  const OmegaMatrix& m = o.sizes.matrix[l];
  const int rp = o.sizes.rp, tokens = w.chunk.tokens, rows = w.chunk.rows;
  if (g.stage != OmegaStage::states)
    product<kArithmetic>(g.other, rp, tokens, rows, m.out, plain(grad_y, m.ld),
                         transposed(w.d[l], m.ld));
  each(tokens, rows, [&](int t, int i) {
    const int at = t * rp + i;
    const float cf = w.cf[at], kernel = kernel_of_score(w.c, degree, scores[at]);
    g.pairs[l][at] = -cf * kernel;
    if (g.stage == OmegaStage::states) return;
    // Of rows that the token does not see this is nonsense; scan_backward leaves them out.
    const float z = g.other[at];
    g.cf[at] = begins_cf ? -kernel * z : g.cf[at] - kernel * z;
    grad_kernel[at] = begins_kernel ? -cf * z : grad_kernel[at] - cf * z;
  });
  __syncthreads();
}

// ... and begins g.d[l]. A barrier comes after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void inside_to_signals(const OmegaWork& w, const OmegaGrads& g,
                                                  const OmegaOptions& o, int l,
                                                  const float* grad_y) {
  const OmegaMatrix& m = o.sizes.matrix[l];
  product<kArithmetic>(g.d[l], m.ld, w.chunk.rows, m.out, w.chunk.tokens,
                       transposed(g.pairs[l], o.sizes.rp), plain(grad_y, m.ld));
}

// What the chunk leaves, (16), for matrix l: adds to g.d[l] and to the last rows' gradients of Cf
// and A. A barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void leave_backward(const OmegaWork& w, const OmegaGrads& g,
                                               const OmegaOptions& o, int l, bool begins_a) {
  const OmegaMatrix& m = o.sizes.matrix[l];
  const int rp = o.sizes.rp, last = w.chunk.tokens - 1, rows = w.chunk.rows;
  const float* const cf = w.cf + last * rp;
  const float* const a = w.a + last * rp;
  layer_read<kArithmetic>(g.wide, w, o, l, w.k, w.h, rows, plain(g.weights + m.at, m.ld), {});
  if (g.stage != OmegaStage::states)
    each_dot(rows, m.out, w.d[l], m.ld, g.wide, m.ld,
             [&](int i, float dot) { g.cf[last * rp + i] -= dot; });
  if (o.momentum)
    layer_read<kArithmetic>(g.wide2, w, o, l, w.k, w.h, rows, plain(g.momentum + m.at, m.ld), {});
  if (o.momentum && g.stage != OmegaStage::states)
    each_dot(rows, m.out, w.d[l], m.ld, g.wide2, m.ld,
             [&](int i, float dot) { g.a_last[i] = begins_a ? dot : g.a_last[i] + dot; });
  __syncthreads();
  each(rows, m.out, [&](int i, int j) {
    const int at = i * m.ld + j;
    float move = -cf[i] * g.wide[at];
    if (o.momentum) move += a[i] * g.wide2[at];
    g.d[l][at] += move;
  });
  __syncthreads();
}

// out [rows, count] += the gradient of matrix l's inputs through what the chunk leaves.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void leave_to_inputs(const OmegaWork& w, const OmegaGrads& g,
                                                const OmegaOptions& o, int l, float* out, int ld,
                                                int first, int count) {
  const OmegaMatrix& m = o.sizes.matrix[l];
  const int last = (w.chunk.tokens - 1) * o.sizes.rp, rows = w.chunk.rows;
  back_through<kArithmetic>(out, ld, rows, first, count, w.d[l], m.ld, m.out,
                            plain(g.weights + m.at, m.ld), -1, w.cf + last);
  if (o.momentum)
    back_through<kArithmetic>(out, ld, rows, first, count, w.d[l], m.ld, m.out,
                              plain(g.momentum + m.at, m.ld), 1, w.a + last);
}

// The reads of the state by matrix l, m_t M u_t - s_t S u_t: adds to g.m and g.s.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void read_gates_backward(const OmegaWork& w, const OmegaGrads& g,
                                                    const OmegaOptions& o, int l,
                                                    const float* grad_y) {
  const OmegaMatrix& m = o.sizes.matrix[l];
  const int tokens = w.chunk.tokens;
  layer_read<kArithmetic>(g.wide, w, o, l, w.q, w.query_h, tokens, w.before.matrix[l], {});
  each_dot(tokens, m.out, grad_y, m.ld, g.wide, m.ld, [&](int t, float dot) { g.m[t] += dot; });
  __syncthreads();
  if (!has_momentum(o, l)) return;
  layer_read<kArithmetic>(g.wide, w, o, l, w.q, w.query_h, tokens, w.rate.matrix[l], {});
  each_dot(tokens, m.out, grad_y, m.ld, g.wide, m.ld, [&](int t, float dot) { g.s[t] -= dot; });
  __syncthreads();
}

// out [tokens, count] += the gradient of matrix l's query-side inputs through the state.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void read_to_inputs(const OmegaWork& w, const OmegaOptions& o, int l,
                                               const float* grad_y, float* out, int ld, int first,
                                               int count) {
  const OmegaMatrix& m = o.sizes.matrix[l];
  back_through<kArithmetic>(out, ld, w.chunk.tokens, first, count, grad_y, m.ld, m.out,
                            w.before.matrix[l], 1, w.m);
  if (has_momentum(o, l))
    back_through<kArithmetic>(out, ld, w.chunk.tokens, first, count, grad_y, m.ld, m.out,
                              w.rate.matrix[l], -1, w.s);
}

// The last matrix of a deep memory and the activation before it, of the tokens: from g.y to
// g.queries. The queries' hidden layer is at hand. A barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void last_layer_queries(const OmegaWork& w, const OmegaGrads& g,
                                                   const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  const int last = last_matrix(o), tokens = w.chunk.tokens, rows = w.chunk.rows;
  product<kArithmetic>(w.scores, sz.rp, tokens, rows, o.hidden, plain(w.query_h, sz.fp),
                       transposed(w.h, sz.fp));
  inside_to_pairs<kArithmetic>(w, g, o, last, g.y, w.scores, 0, g.last_scores, true, true);
  product<kArithmetic>(g.query_h, sz.fp, tokens, o.hidden, rows, plain(g.last_scores, sz.rp),
                       plain(w.h, sz.fp));
  read_to_inputs<kArithmetic>(w, o, last, g.y, g.query_h, sz.fp, 0, o.hidden);
  read_gates_backward<kArithmetic>(w, g, o, last, g.y);
  hidden_layer_backward(w, g, o, 0, tokens);
  __syncthreads();
}

// ... and of the rows: g.h and g.d of the last matrix.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void last_layer_rows(const OmegaWork& w, const OmegaGrads& g,
                                                const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  const int last = last_matrix(o);
  inside_to_signals<kArithmetic>(w, g, o, last, g.y);
  leave_backward<kArithmetic>(w, g, o, last, true);
  product<kArithmetic>(g.h, sz.fp, w.chunk.rows, o.hidden, w.chunk.tokens,
                       transposed(g.last_scores, sz.rp), plain(w.query_h, sz.fp));
  leave_to_inputs<kArithmetic>(w, g, o, last, g.h, sz.fp, 0, o.hidden);
}

// last_layer_queries with the queries' hidden layer computed anew.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void rebuilt_last_layer_queries(const OmegaWork& w, const OmegaGrads& g,
                                                           const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  inside_coefficients<kArithmetic>(w, sz.rp, w.q, w.k, sz.kp, o.key, o.degree);
  for (int l = 0; l < sz.first_layer; ++l) dual_read<kArithmetic>(w.queries[l], w, o, l);
  hidden_layer(w.query_h, w.queries[0], w.queries[1], sz.fp, w.chunk.tokens, o);
  __syncthreads();
  last_layer_queries<kArithmetic>(w, g, o);
}

// The gradient of what the queries of matrix l read.
__device__ __forceinline__ const float* grad_read(const OmegaGrads& g, const OmegaOptions& o,
                                                  int l) {
  return is_deep(o) && sees_phi(o, l) ? g.queries[l] : g.y;
}

// From the kernel's gradient in g.scores to the scores' and to that of q, and the scales'.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void scores_backward(const OmegaWork& w, const OmegaGrads& g,
                                                const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  const int tokens = w.chunk.tokens, rows = w.chunk.rows;
  if (o.degree > 0) {
    float grad_scale[kScaleSlots] = {};
    each(tokens, rows, [&](int t, int i) {
      const int at = t * sz.rp + i;
      const float score = w.scores[at], grad = g.scores[at];
      float power = grad;
#pragma unroll
      for (int l = 0; l < kScaleSlots; ++l) {
        if (l <= o.degree) grad_scale[l] += 2.0f * w.c[l] * power;
        power *= score;
      }
      g.scores[at] = grad * kernel_slope(w.c, o.degree, score);
    });
#pragma unroll
    for (int l = 0; l < kScaleSlots; ++l)
      if (l <= o.degree) g.scales[l * block_threads() + thread_id()] += grad_scale[l];
    __syncthreads();
  }
  if (g.wants_u)
    product<kArithmetic>(g.q, sz.kp, tokens, o.key, rows, plain(g.scores, sz.rp), plain(w.k, sz.kp),
                         {1, 1});
}

// <gradient, state> of what the chunk leaves: of M for m, of S for s and p of the last token.
struct StateDots {
  float m = 0, s = 0, p = 0;
};

__device__ __forceinline__ void add_state_dots(StateDots& dots, const OmegaWork& w,
                                               const OmegaGrads& g, const OmegaOptions& o,
                                               const LayerPart& part) {
  const OmegaMatrix& m = o.sizes.matrix[part.l];
  const View &before = w.before.matrix[part.l], &rate = w.rate.matrix[part.l];
  each(part.inputs, part.outputs, [&](int i, int j) {
    i += part.first;
    j += part.from;
    const int at = m.at + i * m.ld + j;
    const float grad = g.weights[at];
    dots.m += grad * before.at[i * before.row + j * before.column];
    if (!has_momentum(o, part.l)) return;
    const float s = rate.at[i * rate.row + j * rate.column];
    dots.s -= grad * s;
    dots.p += g.momentum[at] * s;
  });
}

// Of all threads, for the first one. A barrier comes before.
__device__ __forceinline__ StateDots block_sum(const StateDots& dots, float* line) {
  return {block_sum(dots.m, line), block_sum(dots.s, line), block_sum(dots.p, line)};
}

__device__ __forceinline__ void use_state_dots(const OmegaWork& w, const OmegaGrads& g,
                                               const StateDots& dots) {
  const int last = w.chunk.tokens - 1;
  g.m[last] += dots.m;
  g.s[last] += dots.s;
  g.p[last] += dots.p;
}

// A part of the states' gradients from those of what the chunk leaves to those of what enters it,
// but for M_ref's. A barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void states_backward(const OmegaWork& w, const OmegaGrads& g,
                                                const OmegaOptions& o, const LayerPart& part) {
  const int l = part.l, last = w.chunk.tokens - 1;
  const OmegaMatrix& m = o.sizes.matrix[l];
  const float keep = w.m[last], move = w.s[last], decay = w.p[last];
  each(part.inputs, part.outputs, [&](int i, int j) {
    const int at = m.at + (part.first + i) * m.ld + part.from + j;
    const float grad = g.weights[at];
    g.weights[at] = keep * grad;
    if (has_momentum(o, l)) g.momentum[at] = decay * g.momentum[at] - move * grad;
  });
  __syncthreads();
  const float* const grad_y = grad_read(g, o, l);
  layer_write<kArithmetic>(g.weights + m.at, w, o, part, w.q, w.query_h, w.chunk.tokens, grad_y,
                           {1, 1, w.m});
  if (has_momentum(o, l))
    layer_write<kArithmetic>(g.momentum + m.at, w, o, part, w.q, w.query_h, w.chunk.tokens, grad_y,
                             {-1, 1, w.s});
}

// The last token's m, s, p, and the gradients of the states that enter the chunk, of which the
// latter may not be wanted.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void dual_backward_states(const OmegaWork& w, const OmegaGrads& g,
                                                     const OmegaOptions& o) {
  if (g.stage != OmegaStage::states) {
    StateDots dots;
    for (int l = 0; l < o.matrices; ++l) add_state_dots(dots, w, g, o, whole_matrix(o, l));
    dots = block_sum(dots, w.line);
    if (thread_id() == 0) use_state_dots(w, g, dots);
    __syncthreads();
  }
  if (g.stage == OmegaStage::tokens) return;
  for (int l = 0; l < o.matrices; ++l) states_backward<kArithmetic>(w, g, o, whole_matrix(o, l));
}

// Adjoint of dual_reads, of the tokens: g.q is added to. A barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void first_layer_queries(const OmegaWork& w, const OmegaGrads& g,
                                                    const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  product<kArithmetic>(w.scores, sz.rp, w.chunk.tokens, w.chunk.rows, o.key, plain(w.q, sz.kp),
                       transposed(w.k, sz.kp));
  for (int l = 0; l < sz.first_layer; ++l) {
    const float* const grad_y = grad_read(g, o, l);
    inside_to_pairs<kArithmetic>(w, g, o, l, grad_y, w.scores, o.degree, g.scores, !is_deep(o),
                                 l == 0);
    if (g.stage != OmegaStage::states) read_gates_backward<kArithmetic>(w, g, o, l, grad_y);
  }
  if (g.stage == OmegaStage::states) return;
  scores_backward<kArithmetic>(w, g, o);
  if (g.wants_u)
    lifted_backward(
        w, g, o, g.q, w.q, w.chunk.tokens, [&](float* out, int ld, int first, int count) {
          for (int l = 0; l < sz.first_layer; ++l)
            read_to_inputs<kArithmetic>(w, o, l, grad_read(g, o, l), out, ld, first, count);
        });
}

// ... and of the rows, and of memory_signals but for M_ref: grad_k [rows, kp] is added to. A
// barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void first_layer_rows(const OmegaWork& w, const OmegaGrads& g,
                                                 const OmegaOptions& o, float* grad_k) {
  const OmegaSizes& sz = o.sizes;
  const int rows = w.chunk.rows;
  for (int l = 0; l < sz.first_layer; ++l) {
    inside_to_signals<kArithmetic>(w, g, o, l, grad_read(g, o, l));
    leave_backward<kArithmetic>(w, g, o, l, !is_deep(o));
  }
  if (g.stage == OmegaStage::states) return;
  // Now every d has its gradient from the writes.
  signals_backward<kArithmetic>(w, g, o);
  if (!g.wants_x) return;
  product<kArithmetic>(grad_k, sz.kp, rows, o.key, w.chunk.tokens, transposed(g.scores, sz.rp),
                       plain(w.q, sz.kp), {1, 1});
  lifted_backward(w, g, o, grad_k, w.k, rows, [&](float* out, int ld, int first, int count) {
    for (int l = 0; l < sz.first_layer; ++l)
      leave_to_inputs<kArithmetic>(w, g, o, l, out, ld, first, count);
    signals_to_inputs<kArithmetic>(w, g, o, out, ld, first, count);
  });
}

// Adjoint of dual_forward and memory_signals but for the states; grad_k [rows, kp] is added to.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void dual_backward(const OmegaWork& w, const OmegaGrads& g,
                                              const OmegaOptions& o, const OmegaInputs& in,
                                              float* grad_k) {
  scan_chunk(w, o, in, false);
  each(w.chunk.tokens, [&](int t) { g.p[t] = g.s[t] = g.m[t] = 0; });
  __syncthreads();
  if (is_deep(o)) {
    rebuilt_last_layer_queries<kArithmetic>(w, g, o);
    last_layer_rows<kArithmetic>(w, g, o);
  }
  first_layer_queries<kArithmetic>(w, g, o);
  first_layer_rows<kArithmetic>(w, g, o, grad_k);
}

// Adjoint of the scans, (32) to (36): g.pair becomes the gradient of Gamma, row by row; g.eta,
// g.alpha and g.theta those of eta and of the log decays. A barrier comes before and after.
__device__ __forceinline__ void scan_backward(const OmegaWork& w, const OmegaGrads& g,
                                              const OmegaOptions& o) {
  const OmegaChunk& c = w.chunk;
  const int rp = o.sizes.rp, last = c.tokens - 1;
  each(c.rows + 1, [&](int i) {
    if (i == c.rows) {
      float m = 0, s = 0, p = 0;
      for (int t = last; t >= 0; --t) {
        const float alpha = t < last ? w.alpha[t + 1] : 0.0f,
                    theta = t < last ? w.theta[t + 1] : 0.0f;
        m = g.m[t] + alpha * m;
        s = g.s[t] + alpha * s;
        p = g.p[t] + w.eta[t] * s + theta * p;
        const bool inside = t > 0;
        g.eta[t] = s * w.p[t];
        g.alpha[t] = s * (inside ? w.s[t - 1] : 0.0f) + m * (inside ? w.m[t - 1] : 1.0f);
        g.theta[t] = p * (inside ? w.p[t - 1] : 1.0f);
      }
      return;
    }
    float cf = 0, a = 0;
    for (int t = last; t >= larger(0, i - c.overhang); --t) {
      const int at = t * rp + i;
      cf = g.cf[at] + (t < last ? w.alpha[t + 1] * cf : 0.0f);
      a = w.eta[t] * cf + (t < last ? w.theta[t + 1] * a : o.momentum ? g.a_last[i] : 0.0f);
      g.cf[at] = cf;
      g.pair[at] = a;
    }
  });
  __syncthreads();
  for (int t = thread_id() / kWarp; t < c.tokens; t += block_threads() / kWarp) {
    const int seen = c.overhang + t + 1;
    float eta = 0, alpha = 0, theta = 0;
    for (int i = lane_id(); i < seen; i += kWarp) {
      const int at = t * rp + i;
      eta += g.cf[at] * w.a[at];
      if (t == 0 || i == seen - 1) continue;  // the token before does not see the last row
      alpha += g.cf[at] * w.cf[at - rp];
      theta += g.pair[at] * w.a[at - rp];
    }
    eta = group_sum(eta);
    alpha = group_sum(alpha);
    theta = group_sum(theta);
    if (lane_id() != 0) continue;
    g.eta[t] += eta;
    g.alpha[t] = w.alpha[t] * (g.alpha[t] + alpha);
    g.theta[t] = w.theta[t] * (g.theta[t] + theta);
  }
  __syncthreads();
}

}  // namespace atlas::kernels::cuda
