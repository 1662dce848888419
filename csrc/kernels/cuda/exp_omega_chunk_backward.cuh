#pragma once
// Adjoint of one chunk of the exponential Omega rule (docs/math/exp_omega_rule.md, section 5). Row
// t of what is stacked is window row t, then query t - rows.
#include "kernels/cuda/exp_omega_saved.cuh"

namespace atlas::kernels::cuda {

// The gradients of set `set`'s sums: [rows + tokens, row_ld].
__device__ __forceinline__ const float* grad_sums(const ExpOmegaGrads& g, int set) {
  return g.d[set];
}

// What the window's tokens write into their rows at the chunk's end, eqs. (15), (16): adds to g.d
// and to the last token's gradients of Cf and A. A barrier comes before and after.
__device__ __forceinline__ void write_rows_backward(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                                    const OmegaOptions& o, int set) {
  const OmegaChunk& c = w.chunk;
  const int last = (c.tokens - 1) * o.sizes.rp, ld = row_ld(o), width = row_width(o);
  const int row = static_cast<int>(past_ld(o)), rate = row_sets(o) * width;
  const bool begins_a = !is_deep(o);
  const float* const past =
      g.past + (c.position - c.overhang) * static_cast<int64_t>(row) + set * width;
  each_dot(c.rows, width, w.d[set], ld, past, row,
           [&](int i, float dot) { g.cf[last + i] -= dot; });
  if (o.momentum)
    each_dot(c.rows, width, w.d[set], ld, past + rate, row,
             [&](int i, float dot) { g.a_last[i] = begins_a ? dot : g.a_last[i] + dot; });
  each(c.rows, width, [&](int i, int j) {
    const float* const grad = past + i * row + j;
    float move = -w.cf[last + i] * grad[0];
    if (o.momentum) move += w.a[last + i] * grad[rate];
    g.d[set][i * ld + j] += move;
  });
  __syncthreads();
}

// The window's tokens in the read, the last term of (14): begins g.d, adds to g.cf. With "softmax"
// the chunk's own tokens are in the kernel's sum, too. A barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void near_backward(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                              const ExpOmegaOptions& options,
                                              const ExpOmegaInputs& in) {
  const OmegaOptions& o = options.omega;
  const OmegaSizes& sz = o.sizes;
  const OmegaChunk& c = w.chunk;
  const int tokens = c.tokens, rows = c.rows, kp = sz.kp, rp = sz.rp;
  const bool normalized = options.normalize == ExpNormalize::softmax;
  const int64_t first = c.position - c.overhang;
  load_past_keys(g.near_keys, o, in, w.item, first, rows);
  __syncthreads();
  product<kArithmetic>(w.scores, rp, tokens, rows, o.key, plain(w.q, kp),
                       transposed(g.near_keys, kp), {options.scale});
  each(tokens, rows, [&](int t, int i) {
    const int at = t * rp + i;
    w.scores[at] =
        i <= c.overhang + t ? exponential(w.scores[at] - (normalized ? w.most[t] : 0.0f)) : 0.0f;
  });
  __syncthreads();
  for (int set = 0; set < row_sets(o); ++set) {
    const float* const grad = grad_read(g, o, set);
    inside_to_pairs<kArithmetic>(w, g, o, set, grad, w.scores, 0, g.scores, !is_deep(o), set == 0);
    inside_to_signals<kArithmetic>(w, g, o, set, grad);
    write_rows_backward(w, g, o, set);
  }
  each(tokens, rows, [&](int t, int i) {
    const int at = t * rp + i;
    const float centre = normalized && i >= c.overhang ? g.centre[t] : 0.0f;
    g.scores[at] = options.scale * w.scores[at] * (g.scores[at] - centre);
  });
  __syncthreads();
  if (g.wants_u)
    product<kArithmetic>(g.q, kp, tokens, o.key, rows, plain(g.scores, rp), plain(g.near_keys, kp),
                         {1, 1});
  if (g.wants_x)
    product<kArithmetic>(g.keys + first * kp, kp, rows, o.key, tokens, transposed(g.scores, rp),
                         plain(w.q, kp), {1, 1});
}

// From the kernel and g.by, grad_z . b, to the exponents' gradients in g.by; adds to g.m and g.s.
// Rows [from, all) of what is stacked. Barrier by the caller.
__device__ __forceinline__ void exponents_backward(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                                   const ExpOmegaOptions& options, int from,
                                                   int all, int count) {
  const OmegaOptions& o = options.omega;
  const int rows = w.chunk.rows;
  const bool normalized = options.normalize == ExpNormalize::softmax;
  each_warp(all - from, [&](int i) {
    const int row = from + i, t = row - rows;
    const bool reads = t >= 0;
    const float m = g.factor[row], s = reads && o.momentum ? w.s[t] : 0.0f;
    const float centre = reads && normalized ? g.centre[t] : 0.0f;
    float grad_m = 0, grad_s = 0;
    for (int j = lane_id(); j < count; j += kWarp) {
      const int at = row * kKernelLd + j;
      const float kernel = w.kernel[at], by = g.by[at];
      const float by_momentum = reads && o.momentum ? g.by_momentum[t * kKernelLd + j] : 0.0f;
      grad_m += kernel * by;
      grad_s -= kernel * by_momentum;
      g.by[at] = options.scale * kernel * (m * by - s * by_momentum - centre);
    }
    if (!reads) return;
    grad_m = group_sum(grad_m);
    grad_s = group_sum(grad_s);
    if (lane_id() != 0) return;
    g.m[t] += grad_m;
    g.s[t] += grad_s;
  });
}

// What reads rows of M_ref that are an argument of their own: their gradients, through z(k_i), are
// stored at once, as no other chunk has any. `kernel` of the window's rows.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void own_reference_backward(const ExpOmegaWork& w,
                                                       const ExpOmegaGrads& g,
                                                       const ExpOmegaBackward& args, int set,
                                                       int64_t first, int count,
                                                       int64_t reference_rows) {
  const OmegaOptions& o = args.options.omega;
  const OmegaItem& item = w.item;
  const int ld = row_ld(o), width = row_width(o), rows = w.chunk.rows;
  const bool reads = reads_window(o);
  if (reads) {
    load_state_rows(w.block, ld, width, args.in.reference[set], item, first, count);
    __syncthreads();
    product<kArithmetic>(g.by, kKernelLd, rows, count, width, plain(grad_sums(g, set), ld),
                         transposed(w.block, ld), {1, set == 0 ? 0.0f : 1.0f});
    product<kArithmetic>(w.block, ld, count, width, rows, transposed(w.kernel, kKernelLd),
                         plain(grad_sums(g, set), ld));
  }
  const OmegaResult& result = args.grad_reference[set];
  if (result.data == nullptr) return;
  each(count, width, [&](int i, int j) {
    float grad = reads ? w.block[i * ld + j] : 0.0f;
    if (first + i < reference_rows)
      grad += state_row(args.grad_final_reference[set], item, first + i, j);
    store_value(result.data, result.dtype,
                ((item.n * args.capacity + first + i) * o.heads + item.head) * width + j, grad);
  });
}

// The chunk's queries and window rows over all rows before it, eqs. (13) to (17), and these rows'
// gradients back over the chunk: one walk, block by block, that reads p keys, 4 R p bytes of each
// part of saved rows, and reads and writes as much of their gradients and 4 K p of the keys'. The
// gradients of the final M_ref's first `reference_rows` rows come in here. A barrier comes before
// and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void past_backward(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                              const ExpOmegaBackward& args, int number,
                                              bool own_reference, int64_t reference_rows) {
  const ExpOmegaOptions& options = args.options;
  const OmegaOptions& o = options.omega;
  const OmegaChunk& c = w.chunk;
  const int kp = o.sizes.kp, ld = row_ld(o), width = row_width(o), tokens = c.tokens;
  const int rows = c.rows, all = rows + tokens, row = static_cast<int>(past_ld(o));
  const int from = reads_window(o) ? 0 : rows;     // stacked rows that have a kernel,
  const int shared = own_reference ? rows : from;  // and that meet the same rows
  const int rate = row_sets(o) * width;
  const bool normalized = options.normalize == ExpNormalize::softmax;
  const RowMove move = row_move(w);
  MoveGrads grads{};
  for (int64_t first = 0; first < c.position; first += kKeyBlock) {
    const int count = static_cast<int>(smaller(kKeyBlock, c.position - first));
    find_rows(w, g, o, args.saved, number, first, count);
    load_past_keys(w.keys, o, args.in, w.item, first, count);
    __syncthreads();
    block_exponents<kArithmetic>(w.kernel + from * kKernelLd, w, options, w.k + from * kp,
                                 all - from, count);
    each(all - from, count, [&](int i, int j) {
      const int at = (from + i) * kKernelLd + j, t = from + i - rows;
      w.kernel[at] = exponential(w.kernel[at] - (normalized && t >= 0 ? w.most[t] : 0.0f));
    });
    for (int set = 0; set < row_sets(o); ++set) {
      const float beta = set == 0 ? 0.0f : 1.0f;
      const float* const sums = grad_sums(g, set);
      float* const past = g.past + first * row + set * width;
      rebuild_rows(w, g, args, set, first, count, move, own_reference ? 0 : reference_rows, grads);
      __syncthreads();
      product<kArithmetic>(g.by + shared * kKernelLd, kKernelLd, all - shared, count, width,
                           plain(sums + shared * ld, ld), transposed(w.block, ld), {1, beta});
      product<kArithmetic>(past, row, count, width, all - shared,
                           transposed(w.kernel + shared * kKernelLd, kKernelLd),
                           plain(sums + shared * ld, ld), {1, 1, g.factor + shared});
      if (o.momentum) {
        product<kArithmetic>(g.by_momentum, kKernelLd, tokens, count, width,
                             plain(sums + rows * ld, ld), transposed(w.rates, ld), {1, beta});
        product<kArithmetic>(past + rate, row, count, width, tokens,
                             transposed(w.kernel + rows * kKernelLd, kKernelLd),
                             plain(sums + rows * ld, ld), {-1, 1, w.s});
      }
      if (own_reference)
        own_reference_backward<kArithmetic>(w, g, args, set, first, count, reference_rows);
      __syncthreads();
    }
    exponents_backward(w, g, options, from, all, count);
    __syncthreads();
    if (g.wants_u || g.wants_x)
      product<kArithmetic>(g.k + from * kp, kp, all - from, o.key, count,
                           plain(g.by + from * kKernelLd, kKernelLd), plain(w.keys, kp), {1, 1});
    if (g.wants_x)
      product<kArithmetic>(g.keys + first * kp, kp, count, o.key, all - from,
                           transposed(g.by + from * kKernelLd, kKernelLd),
                           plain(w.k + from * kp, kp), {1, 1});
  }
  const float by_m = block_sum(grads.m, w.line), by_s = block_sum(grads.s, w.line),
              by_p = block_sum(grads.p, w.line);
  if (thread_id() == 0) {
    g.m[tokens - 1] += by_m;
    g.s[tokens - 1] += by_s;
    g.p[tokens - 1] += by_p;
  }
  __syncthreads();
}

}  // namespace atlas::kernels::cuda
