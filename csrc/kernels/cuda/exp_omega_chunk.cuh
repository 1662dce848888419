#pragma once
// One chunk of the exponential Omega rule, forwards (docs/math/exp_omega_rule.md, sections 2 to 4).
// A chunk of n tokens with p tokens before it walks over them once: it reads p keys and the 4 R p
// bytes of each part of their rows (b and its momentum, of every set), makes the read's sums and
// the error signals' from them, and writes the moved rows back, if a decay or a momentum moves
// them.
#include "kernels/cuda/exp_omega_kernel.cuh"
#include "kernels/cuda/omega_dual.cuh"

namespace atlas::kernels::cuda {

// Whether this chunk's M_ref is an argument: a call that begins in mid-chunk.
__device__ __forceinline__ bool own_reference(const ExpOmegaWork& w, const ExpOmegaInputs& in) {
  return w.chunk.first == 0 && in.reference[0].present;
}

// The sums start from nothing; e from the residual. A barrier comes before.
__device__ __forceinline__ void begin_sums(const ExpOmegaWork& w, const ExpOmegaOptions& options) {
  const OmegaOptions& o = options.omega;
  const OmegaChunk& c = w.chunk;
  const int ld = row_ld(o), width = row_width(o);
  for (int set = 0; set < row_sets(o); ++set) {
    float* const queries = query_sums(w, o, set);
    each(c.tokens, width, [&](int t, int j) { queries[t * ld + j] = 0; });
    if (is_deep(o)) each(c.rows, width, [&](int i, int j) { w.z[set][i * ld + j] = 0; });
  }
  if (options.normalize == ExpNormalize::softmax)
    each(c.tokens, [&](int t) {
      w.most[t] = kNoExponent;
      w.sum[t] = 0;
    });
  add_residual(w, o);
}

// The walk over all tokens before the chunk: the read's sums m_t E b - s_t E S, the error signals'
// sums (13), and the rows' move to the chunk's end if `moves`. Barriers come before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void walk_past(const ExpOmegaWork& w, const ExpOmegaOptions& options,
                                          const ExpOmegaInputs& in, bool moves) {
  const OmegaOptions& o = options.omega;
  const OmegaChunk& c = w.chunk;
  const int ld = row_ld(o), width = row_width(o);
  const int window = reads_window(o) ? c.rows : 0;  // of the kernel's rows, the first ones
  const bool own = own_reference(w, in), normalized = options.normalize == ExpNormalize::softmax;
  float* const of_queries = w.kernel + window * kKernelLd;
  for (int64_t first = 0; first < c.position; first += kKeyBlock) {
    const int count = static_cast<int>(smaller(kKeyBlock, c.position - first));
    load_past_keys(w.keys, o, in, w.item, first, count);
    __syncthreads();
    block_exponents<kArithmetic>(w.kernel, w, options, window > 0 ? w.k : w.q, window + c.tokens,
                                 count);
    exponentials(w.kernel, kKernelLd, normalized ? window : window + c.tokens, count);
    if (normalized)
      each_warp(c.tokens,
                [&](int t) { softmax_row(of_queries + t * kKernelLd, 0, count, t, w, o); });
    for (int set = 0; set < row_sets(o); ++set) {
      load_past_rows(w, o, set, first, count, moves, row_move(w));
      __syncthreads();
      float* const sums = query_sums(w, o, set);
      const View kernel = plain(of_queries, kKernelLd);
      product<kArithmetic>(sums, ld, c.tokens, width, count, kernel, plain(w.block, ld),
                           {1, 1, nullptr, w.m});
      if (o.momentum)
        product<kArithmetic>(sums, ld, c.tokens, width, count, kernel, plain(w.rates, ld),
                             {-1, 1, nullptr, w.s});
      if (window == 0) continue;
      if (own) {
        load_state_rows(w.block, ld, width, in.reference[set], w.item, first, count);
        __syncthreads();
      }
      product<kArithmetic>(window_sums(w, o, set), ld, window, width, count,
                           plain(w.kernel, kKernelLd), plain(w.block, ld), {1, 1});
    }
  }
}

// The window's part of the read, - sum_i Cf_ti E_ti d_i, and the division by the kernel's sum. The
// window's keys are those of the rows: before the call, the state's.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void read_window(const ExpOmegaWork& w, const ExpOmegaOptions& options,
                                            const ExpOmegaInputs& in) {
  const OmegaOptions& o = options.omega;
  const OmegaSizes& sz = o.sizes;
  const OmegaChunk& c = w.chunk;
  const int ld = row_ld(o), width = row_width(o), rp = sz.rp, rows = c.rows;
  const int before = c.first < c.overhang ? c.overhang - static_cast<int>(c.first) : 0;
  load_past_keys(w.k, o, in, w.item, c.position - c.overhang, before);
  __syncthreads();
  product<kArithmetic>(w.scores, rp, c.tokens, rows, o.key, plain(w.q, sz.kp),
                       transposed(w.k, sz.kp), {options.scale});
  if (options.normalize == ExpNormalize::softmax)
    each_warp(c.tokens, [&](int t) {
      softmax_row(w.scores + t * rp, c.overhang, c.overhang + t + 1, t, w, o);
    });
  else
    exponentials(w.scores, rp, c.tokens, rows);
  __syncthreads();
  each(c.tokens, rows, [&](int t, int i) {
    const int at = t * rp + i;
    w.scores[at] = i <= c.overhang + t ? -w.cf[at] * w.scores[at] : 0.0f;
  });
  __syncthreads();
  for (int set = 0; set < row_sets(o); ++set) {
    float* const sums = query_sums(w, o, set);
    product<kArithmetic>(sums, ld, c.tokens, width, rows, plain(w.scores, rp), plain(w.d[set], ld),
                         {1, 1});
    if (options.normalize == ExpNormalize::softmax)
      each(c.tokens, width, [&](int t, int j) { sums[t * ld + j] *= reciprocal(w.sum[t]); });
  }
  __syncthreads();
}

// From the read's sums to w.y of a deep memory; the matrices go to the chunk's end if `advance`.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void read_deep(const ExpOmegaWork& w, const OmegaOptions& o,
                                          bool advance) {
  const OmegaSizes& sz = o.sizes;
  const OmegaChunk& c = w.chunk;
  const int last = last_matrix(o);
  for (int l = 0; l < sz.first_layer; ++l)
    layer_read<kArithmetic>(w.queries[l], w, o, l, w.q, w.query_h, c.tokens, w.before.matrix[l],
                            {1, 1, nullptr, w.m});
  hidden_layer(w.query_h, w.queries[0], w.queries[1], sz.fp, c.tokens, o);
  __syncthreads();
  inside_coefficients<kArithmetic>(w, sz.rp, w.query_h, w.h, sz.fp, o.hidden, 0);
  dual_read<kArithmetic>(w.y, w, o, last);
  if (!advance) return;
  dual_advance<kArithmetic>(w, o, whole_matrix(o, last));
  const float keep = w.m[c.tokens - 1];
  for (int l = 0; l < sz.first_layer; ++l) {
    const OmegaMatrix& m = sz.matrix[l];
    each(m.in, m.out, [&](int i, int j) { w.weights[m.at + i * m.ld + j] *= keep; });
  }
  __syncthreads();
}

// What the window's tokens write into its rows, which have moved; `saved` [rows, past_ld] gets
// them, too, if it is not null.
__device__ __forceinline__ void push_rows(const ExpOmegaWork& w, const OmegaOptions& o,
                                          float* saved) {
  const OmegaChunk& c = w.chunk;
  const int ld = row_ld(o), width = row_width(o), row = static_cast<int>(past_ld(o)),
            rate = row_sets(o) * width;
  const float* const cf = w.cf + (c.tokens - 1) * o.sizes.rp;
  float* const past = w.past + (c.position - c.overhang) * row;
  for (int set = 0; set < row_sets(o); ++set)
    each(c.rows, width, [&](int i, int j) {
      const int at = i * row + set * width + j;
      const bool seen = i < c.overhang;  // the chunk's own tokens start from zero
      const float d = w.d[set][i * ld + j], b = (seen ? past[at] : 0.0f) - cf[i] * d;
      past[at] = b;
      if (saved != nullptr) saved[at] = b;
      if (!o.momentum) return;
      const float s = (seen ? past[at + rate] : 0.0f) + w.a[i] * d;
      past[at + rate] = s;
      if (saved != nullptr) saved[at + rate] = s;
    });
}

}  // namespace atlas::kernels::cuda
