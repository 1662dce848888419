#pragma once
// The gradients of keys and values in the backward pass of the Omega rule. A chunk's windows reach
// back to W-1 rows of the chunk before it.
#include "kernels/cuda/omega_token_grads.cuh"

namespace atlas::kernels::cuda {

// The gradients of keys or of values: sums over the rows of a chunk's window, [rows, ld] with slot
// j for token first - (W-1) + j, and where they go.
struct RowSums {
  float* at;
  int ld;
  Columns columns;
  const OmegaResult &tokens, &tail;
  const OmegaTensor& final_tail;  // what the final tail's gradient brings,
  bool takes_final;               // if this block takes it
  int summand, later;             // by a token's own chunk, and by the next one
};

__device__ __forceinline__ RowSums key_sums(const OmegaWork& w, const OmegaGrads& g,
                                            const OmegaBackward& args) {
  const OmegaOptions& o = args.options;
  const int slice = w.item.slice;
  return {g.k_sum,           o.sizes.kp,
          {0, o.key, o.key}, args.grad_k,
          args.grad_k_tail,  args.grad_final_k_tail,
          slice == 0,        slice,
          o.slices + slice};
}

__device__ __forceinline__ RowSums value_sums(const OmegaWork& w, const OmegaGrads& g,
                                              const OmegaBackward& args) {
  const OmegaOptions& o = args.options;
  return {g.v_sum,
          o.sizes.vp,
          {w.item.value_at, o.value, o.value * o.slices},
          args.grad_v,
          args.grad_v_tail,
          args.grad_final_v_tail,
          true,
          0,
          1};
}

// Begins the sums of the item's last chunk, of `tokens`, with what the final tail's gradient
// brings. Slots before the sequence's start do not exist.
__device__ __forceinline__ void load_tail_grads(const RowSums& sums, const OmegaOptions& o,
                                                const OmegaItem& item, int tokens) {
  const OmegaTensor& grad = sums.final_tail;
  const bool wanted = sums.takes_final && grad.present;
  const int slots = o.window - 1;
  const int64_t at = item.n * grad.stride[0] + item.head * grad.stride[2] +
                     sums.columns.from * grad.stride[3],
                end = item.position + item.length;
  each(tokens + slots, sums.columns.width, [&](int i, int j) {
    const int slot = i - tokens;
    float value = 0;
    if (wanted && slot >= 0 && slots - slot <= end)
      value = load_value(grad, at + slot * grad.stride[1] + j * grad.stride[3]);
    sums.at[i * sums.ld + j] = value;
  });
}

// Begins the sums of a chunk whose successor another block works on, if there is one.
__device__ __forceinline__ void begin_rows(const RowSums& sums, const OmegaWork& w,
                                           const OmegaOptions& o) {
  if (w.chunk.first + w.chunk.tokens == w.item.length)
    load_tail_grads(sums, o, w.item, w.chunk.tokens);
  else
    each(o.sizes.rows, sums.columns.width, [&](int i, int j) { sums.at[i * sums.ld + j] = 0; });
}

// Hands out slots from `first` on of a summand of the tail's gradient; the sums begin with the
// first of them.
__device__ __forceinline__ void store_tail_grads(const RowSums& sums, int summand, int64_t first,
                                                 const OmegaWork& w, const OmegaOptions& o,
                                                 const OmegaInputs& in) {
  const int slots = o.window - 1;
  if (sums.tail.data == nullptr || first >= slots) return;
  const int64_t n = summand * in.sequences + w.item.n;
  each(slots - static_cast<int>(first), sums.columns.width, [&](int i, int j) {
    store_value(sums.tail.data, sums.tail.dtype,
                ((n * slots + first + i) * o.heads + w.item.head) * sums.columns.whole +
                    sums.columns.from + j,
                sums.at[i * sums.ld + j]);
  });
}

// Hands out the chunk's own tokens.
__device__ __forceinline__ void store_own(const RowSums& sums, const OmegaWork& w,
                                          const OmegaBackward& args) {
  const OmegaOptions& o = args.options;
  store_tokens(sums.tokens, sums.summand, sums.columns, sums.at + (o.window - 1) * sums.ld, sums.ld,
               0, w.chunk.tokens, w, o, args.in);
}

// ... and the tokens before, which belong to the chunk before this one or, at the start of the
// sequence, to it and the tail: in a summand of their own but where nobody else can write.
__device__ __forceinline__ void store_before(const RowSums& sums, const OmegaWork& w,
                                             const OmegaBackward& args) {
  const OmegaOptions& o = args.options;
  const int slots = o.window - 1;
  store_tokens(sums.tokens, sums.later, sums.columns, sums.at + slots * sums.ld, sums.ld,
               -static_cast<int>(smaller(slots, w.chunk.first)), 0, w, o, args.in);
  store_tail_grads(sums, w.chunk.first > 0 ? sums.later : sums.summand, w.chunk.first, w, o,
                   args.in);
}

// Shifts the sums by the chunk's own tokens, so that the slots fit the chunk before, which has
// `next` tokens. `scratch` has window - 1 rows. A barrier comes after.
__device__ __forceinline__ void shift_rows(const RowSums& sums, float* scratch, int slots,
                                           int next) {
  const int ld = sums.ld, width = sums.columns.width;
  each(slots, width, [&](int i, int j) { scratch[i * ld + j] = sums.at[i * ld + j]; });
  __syncthreads();
  each(next + slots, width,
       [&](int i, int j) { sums.at[i * ld + j] = i < next ? 0.0f : scratch[(i - next) * ld + j]; });
  __syncthreads();
}

}  // namespace atlas::kernels::cuda
