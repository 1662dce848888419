#pragma once
// The backward pass of the Omega rule (docs/math/omega_rule.md, sections 5 to 7): a block takes a
// (sequence, head) and visits its chunks last to first, each computed anew from its checkpoint. No
// state is inverted and nothing is exchanged between blocks. Buffers as in the forward; the block
// writes the gradients of its own tokens, gates, states and tails, and its row of grad_scales.
#include "kernels/cuda/omega_dual_backward.cuh"
#include "kernels/cuda/omega_muon_backward.cuh"
#include "kernels/cuda/omega_states.cuh"
#include "kernels/cuda/omega_token_grads.cuh"

namespace atlas::kernels::cuda {

// Hands out the chunk's own tokens and shifts the sums, so that the slots fit the chunk before,
// which has `next` tokens. `scratch` has window - 1 rows. A barrier comes before and after.
__device__ __forceinline__ void settle_rows(float* sums, float* scratch, int ld, int width,
                                            const OmegaResult& result, const OmegaWork& w,
                                            const OmegaBackward& args, int next) {
  const int slots = args.options.window - 1;
  store_tokens(result, sums + slots * ld, ld, width, w, args.options, args.in);
  each(slots, width, [&](int i, int j) { scratch[i * ld + j] = sums[i * ld + j]; });
  __syncthreads();
  each(next + slots, width,
       [&](int i, int j) { sums[i * ld + j] = i < next ? 0.0f : scratch[(i - next) * ld + j]; });
  __syncthreads();
}

// Sums of the key or value gradients behind the last token: what the final tail's gradient brings,
// behind the slots of the last chunk's `tokens`. Slots before the sequence's start do not exist.
__device__ __forceinline__ void load_tail_grads(float* sums, int ld, int width,
                                                const OmegaTensor& grad, const OmegaOptions& o,
                                                const OmegaItem& item, int tokens) {
  const int slots = o.window - 1;
  const int64_t at = item.n * grad.stride[0] + item.head * grad.stride[2],
                end = item.position + item.length;
  each(tokens + slots, width, [&](int i, int j) {
    const int slot = i - tokens;
    float value = 0;
    if (grad.present && slot >= 0 && slots - slot <= end)
      value = load_value(grad, at + slot * grad.stride[1] + j * grad.stride[3]);
    sums[i * ld + j] = value;
  });
}

// Takes the gradients of the final state. The final chunk_weights are M_T where the last token
// closed a chunk, else the last chunk's M_ref.
__device__ __forceinline__ void begin_backward(const OmegaWork& w, const OmegaGrads& g,
                                               const OmegaBackward& args) {
  const OmegaOptions& o = args.options;
  const OmegaItem& item = w.item;
  const int tokens = chunk_tokens_before(o, item, item.length);
  load_state(g.weights, args.grad_final_weights, o, item);
  if (g.momentum != nullptr) load_state(g.momentum, args.grad_final_momentum, o, item);
  load_tail_grads(g.k_sum, o.sizes.kp, o.key, args.grad_final_k_tail, o, item, tokens);
  load_tail_grads(g.v_sum, o.sizes.vp, o.value, args.grad_final_v_tail, o, item, tokens);
  each(kScaleSlots * block_threads(), [&](int i) { g.scales[i] = 0; });
  if (g.reference != nullptr) each_weight(o, [&](int at) { g.reference[at] = 0; });
  __syncthreads();
  const bool closed = item.length > 0 && (item.position + item.length) % o.chunk_size == 0;
  if (closed || (item.length == 0 && g.reference == nullptr))
    add_tensors(g.weights, args.grad_final_chunk_weights, o, item);
  else if (item.length == 0)
    add_tensors(g.reference, args.grad_final_chunk_weights, o, item);
  __syncthreads();
}

// Loads and recomputes the chunk in w and differentiates it. `own_reference`: M_ref is an argument.
template <Arithmetic kArithmetic, bool kMuon>
__device__ __forceinline__ void backward_chunk(const OmegaWork& w, const OmegaGrads& g,
                                               const OmegaBackward& args, bool own_reference) {
  const OmegaOptions& o = args.options;
  const OmegaSizes& sz = o.sizes;
  const OmegaChunk& c = w.chunk;
  const int last = last_matrix(o), slots = o.window - 1;
  float* const grad_k = g.k_sum + (slots - c.overhang) * sz.kp;
  float* const grad_v = g.v_sum + (slots - c.overhang) * sz.vp;
  load_chunk(w, o, args.in);
  const int64_t grad_o = token_offset(args.grad_o, w.item);
  each(c.tokens, o.value, [&](int t, int j) {
    const float value =
        args.grad_o.present
            ? load_value(args.grad_o,
                         grad_o + (c.first + t) * args.grad_o.stride[1] + j * args.grad_o.stride[3])
            : 0.0f;
    g.y[t * sz.vp + j] = value;
  });
  each(c.tokens, o.key, [&](int t, int j) { g.q[t * sz.kp + j] = 0; });
  memory_signals<kArithmetic>(w, o);
  float* const reference = own_reference ? g.reference : g.weights;
  if constexpr (kMuon) {
    for (int l = 0; l < o.matrices; ++l) {
      const OmegaMatrix& m = sz.matrix[l];
      const View &before = w.before.matrix[l], &rate = w.rate.matrix[l];
      each(m.in, m.out, [&](int i, int j) {
        const int at = m.at + i * m.ld + j;
        g.segment_weights[at] = before.at[i * before.row + j];
        if (o.momentum) g.segment_momentum[at] = rate.at[i * rate.row + j];
      });
    }
    __syncthreads();
    muon_backward<kArithmetic>(w, g, o, args.in, grad_k);
  } else {
    dual_backward<kArithmetic>(w, g, o, args.in, grad_k);
    dual_backward_states<kArithmetic>(w, g, o);
    scan_backward(w, g, o);
  }
  signals_to_reference<kArithmetic>(w, g, o, reference);
  // The last chunk's M_ref is the final chunk_weights unless the chunk is closed.
  if (c.first + c.tokens == w.item.length && (w.item.position + w.item.length) % o.chunk_size != 0)
    add_tensors(reference, args.grad_final_chunk_weights, o, w.item);
  each(c.rows(), o.value, [&](int i, int j) { grad_v[i * sz.vp + j] -= g.d[last][i * sz.vp + j]; });
  if (!o.residual) return;
  each(c.tokens, o.value, [&](int t, int j) { g.q[t * sz.kp + j] += g.y[t * sz.vp + j]; });
  if (o.l2)
    each(c.rows(), o.value,
         [&](int i, int j) { grad_k[i * sz.kp + j] += g.d[last][i * sz.vp + j]; });
}

// What is left after the first chunk: the gradients of the state that the call began with.
__device__ __forceinline__ void end_backward(const OmegaWork& w, const OmegaGrads& g,
                                             const OmegaBackward& args) {
  const OmegaOptions& o = args.options;
  const OmegaItem& item = w.item;
  const int slots = o.window - 1;
  if (g.reference != nullptr) store_grads(args.grad_chunk_weights, g.reference, o, item);
  store_grads(args.grad_weights, g.weights, o, item);
  if (g.momentum != nullptr) store_grads(args.grad_momentum, g.momentum, o, item);
  const auto store_tail_grads = [&](const OmegaResult& result, const float* sums, int ld,
                                    int width) {
    if (result.data == nullptr) return;
    each(slots, width, [&](int slot, int j) {
      store_value(result.data, result.dtype,
                  ((item.n * slots + slot) * o.heads + item.head) * width + j, sums[slot * ld + j]);
    });
  };
  store_tail_grads(args.grad_k_tail, g.k_sum, o.sizes.kp, o.key);
  store_tail_grads(args.grad_v_tail, g.v_sum, o.sizes.vp, o.value);
  if (args.grad_scales == nullptr) return;
  for (int l = thread_id() / kWarp; l <= o.degree; l += block_threads() / kWarp) {
    float sum = 0;
    for (int i = lane_id(); i < block_threads(); i += kWarp)
      sum += g.scales[l * block_threads() + i];
    sum = group_sum(sum);
    if (lane_id() == 0) args.grad_scales[(item.n * o.heads + item.head) * (o.degree + 1) + l] = sum;
  }
}

// The item is in w. A barrier comes before.
template <Arithmetic kArithmetic, bool kMuon>
__device__ __forceinline__ void backward_item(OmegaWork& w, const OmegaGrads& g,
                                              const OmegaBackward& args) {
  const OmegaOptions& o = args.options;
  const OmegaItem& item = w.item;
  begin_backward(w, g, args);
  int64_t chunks = 0;
  for (int64_t end = item.length; end > 0; end -= chunk_tokens_before(o, item, end)) ++chunks;
  for (int64_t end = item.length; end > 0;) {
    const int tokens = chunk_tokens_before(o, item, end);
    const bool own_reference = --chunks == 0 && args.in.chunk_weights[0].present;
    end -= tokens;
    __syncthreads();
    const OmegaChunk chunk = chunk_of(o, item, end, tokens);
    if (thread_id() == 0) w.chunk = chunk;
    const int64_t checkpoint = item.checkpoint + chunks;
    set_checkpoint(w.before, args.weights_checkpoints, o, checkpoint, item.head);
    if (o.momentum) set_checkpoint(w.rate, args.momentum_checkpoints, o, checkpoint, item.head);
    if (own_reference)
      set_memory(w.reference, o, args.in.chunk_weights, item);
    else
      set_checkpoint(w.reference, args.weights_checkpoints, o, checkpoint, item.head);
    __syncthreads();
    backward_chunk<kArithmetic, kMuon>(w, g, args, own_reference);
    __syncthreads();
    store_gates(w, g, o, args.in, args);
    store_tokens(args.grad_q, g.q, o.sizes.kp, o.key, w, o, args.in);
    const int next = chunk_tokens_before(o, item, end);
    settle_rows(g.k_sum, g.wide, o.sizes.kp, o.key, args.grad_k, w, args, next);
    settle_rows(g.v_sum, g.wide, o.sizes.vp, o.value, args.grad_v, w, args, next);
  }
  __syncthreads();
  end_backward(w, g, args);
}

template <Arithmetic kArithmetic, bool kMuon>
ATLAS_KERNEL void __launch_bounds__(kOmegaThreads, 1)
    omega_backward_kernel(ATLAS_GRID_CONSTANT const OmegaBackward args) {
  if constexpr (kCompiledCapability < kArithmeticCapability<kArithmetic>) {
    __trap();  // never launched there
    return;
  }
  DYNAMIC_SHARED(float, shared);
  SHARED_ARRAY(OmegaWork, work, 1);
  SHARED_ARRAY(OmegaGrads, grads, 1);
  if (thread_id() == 0) {
    OmegaArena arena = block_arena(shared, args.space);
    take_backward(work[0], grads[0], arena, args.options, args.in.chunk_weights[0].present,
                  block_threads());
    const bool scales = args.grad_scales != nullptr;
    grads[0].wants_u = scales || args.grad_q.data != nullptr;
    grads[0].wants_x = scales || args.grad_k.data != nullptr || args.grad_k_tail.data != nullptr;
  }
  __syncthreads();
  begin_lift(work[0], args.options);
  const int64_t items = args.in.sequences * args.options.heads;
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    __syncthreads();
    const OmegaItem item = omega_item(args.options, args.in, index);
    if (thread_id() == 0) work[0].item = item;
    __syncthreads();
    backward_item<kArithmetic, kMuon>(work[0], grads[0], args);
  }
}

}  // namespace atlas::kernels::cuda
