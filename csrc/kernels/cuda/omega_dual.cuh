#pragma once
// The dual form of one chunk (no Newton-Schulz): a handful of matrix products for every matrix of
// the memory, nothing of size tokens x weights (docs/math/omega_rule.md, section 3).
#include "kernels/cuda/omega_memory.cuh"

namespace atlas::kernels::cuda {

// scores [tokens, rp] = -Cf kernel(queries . rows); with a polynomial map on raw queries and keys,
// `degree` 0 otherwise. A barrier comes after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void inside_coefficients(const OmegaWork& w, int rp,
                                                    const float* queries, const float* rows, int ld,
                                                    int depth, int degree) {
  const OmegaChunk& c = w.chunk;
  product<kArithmetic>(w.scores, rp, c.tokens, c.rows, depth, plain(queries, ld),
                       transposed(rows, ld));
  each(c.tokens, c.rows, [&](int t, int i) {
    const int at = t * rp + i;
    w.scores[at] = -w.cf[at] * kernel_of_score(w.c, degree, w.scores[at]);
  });
  __syncthreads();
}

// y [tokens, ld] = m_t M u_t - s_t S u_t - sum_i Cf_ti (x_i . u_t) d_i for matrix l.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void dual_read(float* y, const OmegaWork& w, const OmegaOptions& o,
                                          int l) {
  const OmegaChunk& c = w.chunk;
  const OmegaMatrix& m = o.sizes.matrix[l];
  layer_read<kArithmetic>(y, w, o, l, w.q, w.query_h, c.tokens, w.before.matrix[l],
                          {1, 0, nullptr, w.m});
  if (o.momentum)
    layer_read<kArithmetic>(y, w, o, l, w.q, w.query_h, c.tokens, w.rate.matrix[l],
                            {-1, 1, nullptr, w.s});
  product<kArithmetic>(y, m.ld, c.tokens, m.out, c.rows, plain(w.scores, o.sizes.rp),
                       plain(w.d[l], m.ld), {1, 1});
}

// A part of the state from the chunk's start, w.before and w.rate, to its end, w.weights and
// w.momentum, which may be the same memory.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void dual_advance(const OmegaWork& w, const OmegaOptions& o,
                                             const LayerPart& part) {
  const OmegaChunk& c = w.chunk;
  const int l = part.l, last = c.tokens - 1;
  const OmegaMatrix& m = o.sizes.matrix[l];
  const float* const cf = w.cf + last * o.sizes.rp;
  float* const weights = w.weights + m.at;
  float* const momentum = o.momentum ? w.momentum + m.at : nullptr;
  const float *const before = w.before.matrix[l].at, *const rate = w.rate.matrix[l].at;
  const float keep = w.m[last], move = w.s[last], decay = w.p[last];
  const bool in_product = !o.momentum && weights == before;  // the decay
  if (!in_product) {
    each(part.inputs, part.outputs, [&](int i, int j) {
      const int at = (part.first + i) * m.ld + part.from + j;
      weights[at] = keep * before[at] - (o.momentum ? move * rate[at] : 0.0f);
      if (o.momentum) momentum[at] = decay * rate[at];
    });
    __syncthreads();
  }
  layer_write<kArithmetic>(weights, w, o, part, w.k, w.h, c.rows, w.d[l],
                           {-1, in_product ? keep : 1.0f, cf});
  if (o.momentum)
    layer_write<kArithmetic>(momentum, w, o, part, w.k, w.h, c.rows, w.d[l], {1, 1, w.a});
}

// w.y [tokens, vp]. A barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void dual_reads(const OmegaWork& w, const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  inside_coefficients<kArithmetic>(w, sz.rp, w.q, w.k, sz.kp, o.key, o.degree);
  for (int l = 0; l < sz.first_layer; ++l)
    dual_read<kArithmetic>(is_deep(o) ? w.queries[l] : w.y, w, o, l);
  if (is_deep(o)) {
    hidden_layer(w.query_h, w.queries[0], w.queries[1], sz.fp, w.chunk.tokens, o);
    __syncthreads();
    inside_coefficients<kArithmetic>(w, sz.rp, w.query_h, w.h, sz.fp, o.hidden, 0);
    dual_read<kArithmetic>(w.y, w, o, last_matrix(o));
  }
}

// ... and the state goes from the chunk's start to its end if `advance`.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void dual_forward(const OmegaWork& w, const OmegaOptions& o,
                                             const OmegaInputs& in, bool advance) {
  scan_chunk(w, o, in, true);
  __syncthreads();
  dual_reads<kArithmetic>(w, o);
  if (!advance) return;
  for (int l = 0; l < o.matrices; ++l) dual_advance<kArithmetic>(w, o, whole_matrix(o, l));
}

}  // namespace atlas::kernels::cuda
