#pragma once
// Where the backward passes write the gradients of a chunk's own tokens and gates.
#include "kernels/cuda/omega_chunk.cuh"
#include "kernels/cuda/omega_grads.cuh"

namespace atlas::kernels::cuda {

// The chunk's first token of this head in a contiguous tensor [B, T, H].
__device__ __forceinline__ int64_t first_row(const OmegaWork& w, const OmegaOptions& o,
                                             const OmegaInputs& in) {
  return (w.item.batch * in.tokens + w.item.begin + w.chunk.first) * o.heads + w.item.head;
}

// `args` has the results. g.pair holds the gradient of Gamma.
template <class Args>
__device__ __forceinline__ void store_gates(const OmegaWork& w, const OmegaGrads& g,
                                            const OmegaOptions& o, const OmegaInputs& in,
                                            const Args& args) {
  const OmegaChunk& c = w.chunk;
  const int64_t row = first_row(w, o, in);
  each(c.tokens, [&](int t) {
    const int64_t at = row + static_cast<int64_t>(t) * o.heads;
    if (args.grad_eta.data != nullptr)
      store_value(args.grad_eta.data, args.grad_eta.dtype, at, g.eta[t]);
    if (args.grad_log_alpha.data != nullptr)
      store_value(args.grad_log_alpha.data, args.grad_log_alpha.dtype, at, g.alpha[t]);
    if (args.grad_log_theta.data != nullptr)
      store_value(args.grad_log_theta.data, args.grad_log_theta.dtype, at, g.theta[t]);
  });
  if (args.grad_gamma.data == nullptr) return;
  each(c.tokens, o.window, [&](int t, int j) {
    const int i = c.overhang + t - j;
    store_value(args.grad_gamma.data, args.grad_gamma.dtype,
                (row + static_cast<int64_t>(t) * o.heads) * o.window + j,
                i >= 0 ? g.pair[t * o.sizes.rp + i] : 0.0f);
  });
}

// result [B, T, H, width]'s tokens of this chunk = rows [tokens, ld].
__device__ __forceinline__ void store_tokens(const OmegaResult& result, const float* rows, int ld,
                                             int width, const OmegaWork& w, const OmegaOptions& o,
                                             const OmegaInputs& in) {
  if (result.data == nullptr) return;
  const int64_t row = first_row(w, o, in);
  each(w.chunk.tokens, width, [&](int t, int j) {
    store_value(result.data, result.dtype, (row + static_cast<int64_t>(t) * o.heads) * width + j,
                rows[t * ld + j]);
  });
}

}  // namespace atlas::kernels::cuda
