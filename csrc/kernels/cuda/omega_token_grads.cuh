#pragma once
// Where the backward passes write the gradients of a chunk's own tokens and gates. What several
// blocks contribute to has a tensor for each summand, one behind the other.
#include "kernels/cuda/omega_chunk.cuh"
#include "kernels/cuda/omega_grads.cuh"

namespace atlas::kernels::cuda {

// The chunk's first token of this head in a contiguous tensor [B, T, H].
__device__ __forceinline__ int64_t first_row(const OmegaWork& w, const OmegaOptions& o,
                                             const OmegaInputs& in) {
  return (w.item.batch * in.tokens + w.item.begin + w.chunk.first) * o.heads + w.item.head;
}

// The same in a summand's.
__device__ __forceinline__ int64_t first_row(const OmegaWork& w, const OmegaOptions& o,
                                             const OmegaInputs& in, int summand) {
  const int64_t batches = in.cu_seqlens != nullptr ? 1 : in.sequences;
  return summand * batches * in.tokens * o.heads + first_row(w, o, in);
}

// `args` has the results, the slice's summands. g.pair holds the gradient of Gamma.
template <class Args>
__device__ __forceinline__ void store_gates(const OmegaWork& w, const OmegaGrads& g,
                                            const OmegaOptions& o, const OmegaInputs& in,
                                            const Args& args) {
  const OmegaChunk& c = w.chunk;
  const int64_t row = first_row(w, o, in, w.item.slice);
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

// Columns of a tensor that has `whole` of them.
struct Columns {
  int from, width, whole;
};

// A summand of result [B, T, H, whole], tokens [first, last) of this chunk, = rows [., ld], of
// which row 0 is the chunk's first token.
__device__ __forceinline__ void store_tokens(const OmegaResult& result, int summand,
                                             const Columns& columns, const float* rows, int ld,
                                             int first, int last, const OmegaWork& w,
                                             const OmegaOptions& o, const OmegaInputs& in) {
  if (result.data == nullptr) return;
  const int64_t row = first_row(w, o, in, summand);
  each(last - first, columns.width, [&](int i, int j) {
    const int t = first + i;
    store_value(result.data, result.dtype,
                (row + static_cast<int64_t>(t) * o.heads) * columns.whole + columns.from + j,
                rows[t * ld + j]);
  });
}

}  // namespace atlas::kernels::cuda
