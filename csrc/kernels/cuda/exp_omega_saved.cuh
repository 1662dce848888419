#pragma once
// What a chunk of the exponential rule's backward pass finds: error signals, the read's kernel sums
// and hidden layers, from what the forward saved, and the way back through "rms".
#include "kernels/cuda/exp_omega_rebuild.cuh"
#include "kernels/cuda/omega_dual_backward.cuh"
#include "kernels/cuda/omega_token_grads.cuh"

namespace atlas::kernels::cuda {

// The error signals and the reads from what the forward saved, of a deep memory the rest of the
// hidden layers, too. A barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void load_saved(const ExpOmegaWork& w, const ExpOmegaBackward& args,
                                           int number) {
  const OmegaOptions& o = args.options.omega;
  const OmegaSizes& sz = o.sizes;
  const OmegaChunk& c = w.chunk;
  const ExpOmegaSaved& saved = args.saved;
  const int sets = row_sets(o), width = row_width(o), ld = row_ld(o), row = sets * width;
  __syncthreads();
  add_residual(w, o);
  const int64_t token = first_row(w, o, args.in.omega), heads = o.heads;
  const int64_t window = ((w.item.checkpoint + number) * heads + w.item.head) * saved.window_rows;
  for (int set = 0; set < sets; ++set) {
    const int at = set * width;
    float* const z = window_sums(w, o, set);
    if (saved.signals != nullptr)
      each(c.rows, width,
           [&](int i, int j) { z[i * ld + j] = saved.signals[(window + i) * row + at + j]; });
    float* const read = query_sums(w, o, set);
    if (read != nullptr)
      each(c.tokens, width, [&](int t, int j) {
        read[t * ld + j] = saved.reads[(token + t * heads) * row + at + j];
      });
  }
  if (saved.normalizers != nullptr)
    each(c.tokens, [&](int t) { w.most[t] = saved.normalizers[token + t * heads]; });
  __syncthreads();
  if (!is_deep(o)) return;
  deep_signals<kArithmetic>(w, o);
  for (int l = 0; l < sz.first_layer; ++l)
    layer_read<kArithmetic>(w.queries[l], w, o, l, w.q, w.query_h, c.tokens, w.before.matrix[l],
                            {1, 1, nullptr, w.m});
  hidden_layer(w.query_h, w.queries[0], w.queries[1], sz.fp, c.tokens, o);
  __syncthreads();
}

// g.centre, of sums divided by the kernel's sum. A barrier comes before and after.
__device__ __forceinline__ void centre_sums(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                            const ExpOmegaBackward& args) {
  const OmegaOptions& o = args.options.omega;
  const int sets = row_sets(o), width = row_width(o), ld = row_ld(o), row = sets * width;
  const int64_t token = first_row(w, o, args.in.omega);
  each_warp(w.chunk.tokens, [&](int t) {
    const float* const read = args.saved.reads + (token + static_cast<int64_t>(t) * o.heads) * row;
    float sum = 0;
    for (int set = 0; set < sets; ++set) {
      const float* const grad = grad_read(g, o, set) + t * ld;
      for (int j = lane_id(); j < width; j += kWarp) sum += grad[j] * read[set * width + j];
    }
    sum = group_sum(sum);
    if (lane_id() == 0) g.centre[t] = sum;
  });
  __syncthreads();
}

// Through o = y / rho: g.y from the gradient of o to that of y, which is computed anew. A barrier
// comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void root_mean_square_backward(const ExpOmegaWork& w,
                                                          const ExpOmegaGrads& g,
                                                          const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  if (is_deep(o)) {
    inside_coefficients<kArithmetic>(w, sz.rp, w.query_h, w.h, sz.fp, o.hidden, 0);
    dual_read<kArithmetic>(w.y, w, o, last_matrix(o));
  }
  each_warp(w.chunk.tokens, [&](int t) {
    float* const y = w.y + t * sz.vp;
    float* const grad = g.y + t * sz.vp;
    float squares = 0, share = 0;
    for (int j = lane_id(); j < o.value; j += kWarp) {
      if (o.residual) y[j] += w.q[t * sz.kp + j];
      squares += y[j] * y[j];
      share += grad[j] * y[j];
    }
    const float mean = group_sum(squares) / static_cast<float>(o.value) + 1e-6f;
    const float factor = 1.0f / square_root(mean);
    share = group_sum(share) / (mean * static_cast<float>(o.value));
    for (int j = lane_id(); j < o.value; j += kWarp) grad[j] = factor * (grad[j] - share * y[j]);
  });
  __syncthreads();
}

}  // namespace atlas::kernels::cuda
