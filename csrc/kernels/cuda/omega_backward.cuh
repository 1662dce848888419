#pragma once
// The backward pass of the Omega rule (docs/math/omega_rule.md, sections 5 to 7): a block takes a
// (sequence, head), of a linear memory perhaps a slice of V, and visits its chunks last to first,
// each computed anew from its checkpoint. No state is inverted, and blocks of a launch exchange
// nothing. Buffers as in the forward; the block writes the gradients of its own tokens, gates,
// states and tails, and its row of grad_scales: of what slices share, its own summand.
#include "kernels/cuda/omega_dual_backward.cuh"
#include "kernels/cuda/omega_muon_backward.cuh"
#include "kernels/cuda/omega_row_sums.cuh"
#include "kernels/cuda/omega_states.cuh"

namespace atlas::kernels::cuda {

// What is to be made.
__device__ __forceinline__ void set_wants(OmegaGrads& g, const OmegaBackward& args) {
  const bool scales = args.grad_scales != nullptr;
  g.stage = args.stage;
  g.wants_u = scales || args.grad_q.data != nullptr;
  g.wants_x = scales || args.grad_k.data != nullptr || args.grad_k_tail.data != nullptr;
  g.part = 0;
}

// A part of the gradients of the final state. The final chunk_weights are M_T where the last token
// closed a chunk, else the last chunk's M_ref. Threads keep to their own elements.
__device__ __forceinline__ void begin_states(const OmegaWork& w, const OmegaGrads& g,
                                             const OmegaBackward& args, const LayerPart& part) {
  const OmegaOptions& o = args.options;
  const OmegaItem& item = w.item;
  const OmegaTensor* const given = args.grad_final_chunk_weights;
  load_matrix(g.weights, args.grad_final_weights[part.l], o, item, part);
  if (g.momentum != nullptr)
    load_matrix(g.momentum, args.grad_final_momentum[part.l], o, item, part);
  if (g.reference != nullptr) load_matrix(g.reference, OmegaTensor(), o, item, part);
  const bool closed = item.length > 0 && (item.position + item.length) % o.chunk_size == 0;
  if (closed || (item.length == 0 && g.reference == nullptr))
    add_tensor(g.weights, given, o, item, part);
  else if (item.length == 0)
    add_tensor(g.reference, given, o, item, part);
}

// Where sums begin.
__device__ __forceinline__ void begin_sums(const OmegaWork& w, const OmegaGrads& g,
                                           const OmegaBackward& args) {
  const OmegaOptions& o = args.options;
  const int tokens = chunk_tokens_before(o, w.item, w.item.length);
  if (g.stage == OmegaStage::all || (g.stage == OmegaStage::tokens && w.item.length == 0)) {
    load_tail_grads(key_sums(w, g, args), o, w.item, tokens);
    load_tail_grads(value_sums(w, g, args), o, w.item, tokens);
  }
  each(kScaleSlots * block_threads(), [&](int i) { g.scales[i] = 0; });
}

// A barrier comes after.
__device__ __forceinline__ void begin_backward(const OmegaWork& w, const OmegaGrads& g,
                                               const OmegaBackward& args) {
  const OmegaOptions& o = args.options;
  for (int l = 0; l < o.matrices && g.stage != OmegaStage::tokens; ++l)
    begin_states(w, g, args, whole_matrix(o, l));
  begin_sums(w, g, args);
  __syncthreads();
}

// What a chunk leaves has the gradients that the walk over the states left. A barrier comes after.
__device__ __forceinline__ void begin_part(const OmegaWork& w, const OmegaGrads& g,
                                           const OmegaBackward& args, int64_t checkpoint) {
  const OmegaOptions& o = args.options;
  load_checkpoint(g.weights, args.weights_adjoints, o, w.item, checkpoint);
  if (g.momentum != nullptr)
    load_checkpoint(g.momentum, args.momentum_adjoints, o, w.item, checkpoint);
  begin_rows(key_sums(w, g, args), w, o);
  begin_rows(value_sums(w, g, args), w, o);
  __syncthreads();
}

// g.y = the gradient of o, of the chunk's tokens; g.q begins. Barrier by the caller.
__device__ __forceinline__ void load_output_grads(const OmegaWork& w, const OmegaGrads& g,
                                                  const OmegaBackward& args) {
  const OmegaOptions& o = args.options;
  const OmegaTensor& grad = args.grad_o;
  const int64_t at = token_offset(grad, w.item) + w.chunk.first * grad.stride[1] +
                     w.item.value_at * grad.stride[3];
  each(w.chunk.tokens, o.value, [&](int t, int j) {
    g.y[t * o.sizes.vp + j] =
        grad.present ? load_value(grad, at + t * grad.stride[1] + j * grad.stride[3]) : 0.0f;
  });
  each(w.chunk.tokens, o.key, [&](int t, int j) { g.q[t * o.sizes.kp + j] = 0; });
}

// The window rows' sums of gradients.
__device__ __forceinline__ float* key_rows(const OmegaWork& w, const OmegaGrads& g,
                                           const OmegaOptions& o) {
  return g.k_sum + (o.window - 1 - w.chunk.overhang) * o.sizes.kp;
}

// What the residual adds to the queries' gradient.
__device__ __forceinline__ void residual_to_queries(const OmegaWork& w, const OmegaGrads& g,
                                                    const OmegaOptions& o) {
  if (!o.residual) return;
  const OmegaSizes& sz = o.sizes;
  each(w.chunk.tokens, o.value,
       [&](int t, int j) { g.q[t * sz.kp + w.item.value_at + j] += g.y[t * sz.vp + j]; });
}

// From e's gradient to the values' and, by the residual, the keys'.
__device__ __forceinline__ void errors_to_rows(const OmegaWork& w, const OmegaGrads& g,
                                               const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  const float* const e = g.d[last_matrix(o)];
  float* const grad_v = g.v_sum + (o.window - 1 - w.chunk.overhang) * sz.vp;
  each(w.chunk.rows, o.value, [&](int i, int j) { grad_v[i * sz.vp + j] -= e[i * sz.vp + j]; });
  if (!o.residual || !o.l2) return;
  float* const grad_k = key_rows(w, g, o) + w.item.value_at;
  each(w.chunk.rows, o.value, [&](int i, int j) { grad_k[i * sz.kp + j] += e[i * sz.vp + j]; });
}

// Whether the chunk's M_ref is the final chunk_weights: the last chunk's, unless it is closed.
__device__ __forceinline__ bool keeps_reference(const OmegaWork& w, const OmegaOptions& o) {
  return w.chunk.first + w.chunk.tokens == w.item.length &&
         (w.item.position + w.item.length) % o.chunk_size != 0;
}

// Loads and recomputes the chunk in w and differentiates it. `own_reference`: M_ref is an argument.
template <Arithmetic kArithmetic, bool kMuon>
__device__ __forceinline__ void backward_chunk(const OmegaWork& w, const OmegaGrads& g,
                                               const OmegaBackward& args, bool own_reference) {
  const OmegaOptions& o = args.options;
  const OmegaSizes& sz = o.sizes;
  load_chunk(w, o, args.in);
  load_output_grads(w, g, args);
  if (g.stage != OmegaStage::states)
    memory_signals<kArithmetic>(w, o);
  else
    __syncthreads();
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
    muon_backward<kArithmetic>(w, g, o, args.in, key_rows(w, g, o));
  } else {
    dual_backward<kArithmetic>(w, g, o, args.in, key_rows(w, g, o));
    dual_backward_states<kArithmetic>(w, g, o);
    if (g.stage != OmegaStage::states) scan_backward(w, g, o);
  }
  if (g.stage != OmegaStage::tokens) {
    reference_backward<kArithmetic>(w, g, o, reference);
    if (keeps_reference(w, o)) add_tensors(reference, args.grad_final_chunk_weights, o, w.item);
  }
  if (g.stage == OmegaStage::states) return;
  errors_to_rows(w, g, o);
  residual_to_queries(w, g, o);
}

// What is left after the first chunk: a part of the gradients of the state that the call began
// with,
__device__ __forceinline__ void end_states(const OmegaWork& w, const OmegaGrads& g,
                                           const OmegaBackward& args, const LayerPart& part) {
  const OmegaOptions& o = args.options;
  const int l = part.l;
  if (g.reference != nullptr) store_grad(args.grad_chunk_weights[l], g.reference, o, w.item, part);
  store_grad(args.grad_weights[l], g.weights, o, w.item, part);
  if (g.momentum != nullptr) store_grad(args.grad_momentum[l], g.momentum, o, w.item, part);
}

// and sums.
__device__ __forceinline__ void end_sums(const OmegaWork& w, const OmegaGrads& g,
                                         const OmegaBackward& args) {
  const OmegaOptions& o = args.options;
  const OmegaItem& item = w.item;
  if (g.stage != OmegaStage::tokens ||
      (item.length == 0 && g.part == 0)) {  // else chunks handed them out
    const RowSums keys = key_sums(w, g, args), values = value_sums(w, g, args);
    store_tail_grads(keys, keys.summand, 0, w, o, args.in);
    store_tail_grads(values, values.summand, 0, w, o, args.in);
  }
  if (args.grad_scales == nullptr) return;
  const int64_t row =
      ((item.slice * args.parts + g.part) * args.in.sequences + item.n) * o.heads + item.head;
  for (int l = thread_id() / kWarp; l <= o.degree; l += block_threads() / kWarp) {
    float sum = 0;
    for (int i = lane_id(); i < block_threads(); i += kWarp)
      sum += g.scales[l * block_threads() + i];
    sum = group_sum(sum);
    if (lane_id() == 0) args.grad_scales[row * (o.degree + 1) + l] = sum;
  }
}

// The chunk in w has been differentiated: hands out what it makes, and makes room for the chunk
// before, of `next` tokens. A barrier comes before and after.
__device__ __forceinline__ void end_chunk(const OmegaWork& w, const OmegaGrads& g,
                                          const OmegaBackward& args, int next) {
  const OmegaOptions& o = args.options;
  const RowSums keys = key_sums(w, g, args), values = value_sums(w, g, args);
  store_gates(w, g, o, args.in, args);
  store_tokens(args.grad_q, w.item.slice, {0, o.key, o.key}, g.q, o.sizes.kp, 0, w.chunk.tokens, w,
               o, args.in);
  store_own(keys, w, args);
  store_own(values, w, args);
  if (g.stage != OmegaStage::tokens) {
    shift_rows(keys, g.wide, o.window - 1, next);
    shift_rows(values, g.wide, o.window - 1, next);
  } else {
    store_before(keys, w, args);
    store_before(values, w, args);
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
    if (g.stage == OmegaStage::tokens && chunks % args.parts != g.part) continue;
    __syncthreads();
    const OmegaChunk chunk = chunk_of(o, item, end, tokens);
    if (thread_id() == 0) w.chunk = chunk;
    const int64_t checkpoint = item.checkpoint + chunks;
    set_checkpoint(w.before, args.weights_checkpoints, o, item, checkpoint);
    if (o.momentum) set_checkpoint(w.rate, args.momentum_checkpoints, o, item, checkpoint);
    if (own_reference)
      set_memory(w.reference, o, args.in.chunk_weights, item);
    else
      set_checkpoint(w.reference, args.weights_checkpoints, o, item, checkpoint);
    __syncthreads();
    if (g.stage == OmegaStage::tokens) begin_part(w, g, args, checkpoint);
    if (g.stage == OmegaStage::states) {
      save_checkpoint(args.weights_adjoints, g.weights, o, item, checkpoint);
      if (o.momentum) save_checkpoint(args.momentum_adjoints, g.momentum, o, item, checkpoint);
    }
    backward_chunk<kArithmetic, kMuon>(w, g, args, own_reference);
    __syncthreads();
    if (g.stage != OmegaStage::states) end_chunk(w, g, args, chunk_tokens_before(o, item, end));
  }
  __syncthreads();
  for (int l = 0; l < o.matrices && g.stage != OmegaStage::tokens; ++l)
    end_states(w, g, args, whole_matrix(o, l));
  if (g.stage != OmegaStage::states) end_sums(w, g, args);
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
    set_wants(grads[0], args);
  }
  __syncthreads();
  begin_lift(work[0], args.options);
  const unsigned parts = args.stage == OmegaStage::tokens ? static_cast<unsigned>(args.parts) : 1;
  const int64_t items = args.in.sequences * args.options.heads * args.options.slices * parts;
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    __syncthreads();
    const unsigned place = static_cast<unsigned>(index);
    const OmegaItem item = omega_item(args.options, args.in, place / parts);
    if (thread_id() == 0) {
      work[0].item = item;
      grads[0].part = static_cast<int>(place % parts);
    }
    __syncthreads();
    backward_item<kArithmetic, kMuon>(work[0], grads[0], args);
  }
}

}  // namespace atlas::kernels::cuda
