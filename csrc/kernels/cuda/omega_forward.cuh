#pragma once
// The forward pass of the Omega rule (spec section 1, docs/math/omega_rule.md): a block takes a
// (sequence, head), of a linear memory perhaps a slice of V, and walks through its chunks with the
// memory at hand; nothing is exchanged between blocks. All buffers are float, in shared memory as
// far as they fit (omega_work.cuh), else in the block's part of the scratch. The block writes o of
// its tokens, its checkpoints and its part of the final state.
#include "kernels/cuda/omega_dual.cuh"
#include "kernels/cuda/omega_muon.cuh"
#include "kernels/cuda/omega_states.cuh"

namespace atlas::kernels::cuda {

// w.y, with the residual, to o.
__device__ __forceinline__ void store_output(const OmegaWork& w, const OmegaForward& args) {
  const OmegaItem& item = w.item;
  const OmegaChunk& c = w.chunk;
  const OmegaOptions& o = args.options;
  const OmegaSizes& sz = o.sizes;
  const int64_t row = (item.batch * args.in.tokens + item.begin + c.first) * o.heads + item.head;
  each(c.tokens, o.value, [&](int t, int j) {
    float value = w.y[t * sz.vp + j];
    if (o.residual) value += w.q[t * sz.kp + item.value_at + j];
    store_value(
        args.o.data, args.o.dtype,
        (row + static_cast<int64_t>(t) * o.heads) * (o.value * o.slices) + item.value_at + j,
        value);
  });
}

template <Arithmetic kArithmetic, bool kMuon>
__device__ __forceinline__ void forward_chunk(const OmegaWork& w, const OmegaForward& args,
                                              int64_t checkpoint) {
  const OmegaOptions& o = args.options;
  const bool ends = w.chunk.first + w.chunk.tokens == w.item.length;
  load_chunk(w, o, args.in);
  save_checkpoint(args.weights_checkpoints, w.weights, o, w.item, checkpoint);
  if (o.momentum) save_checkpoint(args.momentum_checkpoints, w.momentum, o, w.item, checkpoint);
  if (ends) store_memory(args.chunk_weights, w.reference, o, w.item);
  memory_signals<kArithmetic>(w, o);
  if constexpr (kMuon)
    muon_forward<kArithmetic>(w, o, args.in);
  else
    dual_forward<kArithmetic>(w, o, args.in, !ends || args.weights[0] != nullptr);
  store_output(w, args);
}

// A part of the final state, w.before and w.rate; its chunk_weights are M_T where the last token
// closed a chunk, else the last chunk's M_ref, which `with_reference` stores. A barrier comes
// before.
__device__ __forceinline__ void store_final(const OmegaWork& w, const OmegaForward& args,
                                            const LayerPart& part, bool with_reference) {
  const OmegaOptions& o = args.options;
  const OmegaItem& item = w.item;
  store_matrix(args.weights[part.l], w.before, o, item, part);
  if (o.momentum) store_matrix(args.momentum[part.l], w.rate, o, item, part);
  const bool closed = item.length > 0 && (item.position + item.length) % o.chunk_size == 0;
  if (closed)
    store_matrix(args.chunk_weights[part.l], w.before, o, item, part);
  else if (with_reference)
    store_matrix(args.chunk_weights[part.l], w.reference, o, item, part);
}

// What goes with the final state; checkpoints from `checkpoint` on belong to chunks that do not
// exist.
__device__ __forceinline__ void end_forward(const OmegaWork& w, const OmegaForward& args,
                                            int64_t checkpoint) {
  const OmegaOptions& o = args.options;
  const OmegaItem& item = w.item;
  for (; checkpoint < item.checkpoint_end; ++checkpoint) {
    save_checkpoint(args.weights_checkpoints, nullptr, o, item, checkpoint);
    save_checkpoint(args.momentum_checkpoints, nullptr, o, item, checkpoint);
  }
  store_tail(args.v_tail, args.in.v, args.in.v_tail, o, item, item.value_at, o.value,
             o.value * o.slices);
  if (item.value_at > 0) return;  // the rest is the first slice's business
  store_tail(args.k_tail, args.in.k, args.in.k_tail, o, item, 0, o.key, o.key);
  if (args.position != nullptr && item.head == 0 && thread_id() == 0)
    args.position[item.n] = item.position + item.length;
}

// The item is in w. A barrier comes before.
template <Arithmetic kArithmetic, bool kMuon>
__device__ __forceinline__ void forward_item(OmegaWork& w, const OmegaForward& args) {
  const OmegaOptions& o = args.options;
  const OmegaItem& item = w.item;
  load_state(w.weights, args.in.weights, o, item);
  if (w.momentum != nullptr) load_state(w.momentum, args.in.momentum, o, item);
  int64_t checkpoint = item.checkpoint;
  for (int64_t first = 0; first < item.length; ++checkpoint) {
    __syncthreads();
    const OmegaChunk chunk = chunk_from(o, item, first);
    if (thread_id() == 0) w.chunk = chunk;
    if (first > 0) set_memory(w.reference, o, w.before);
    __syncthreads();
    first += w.chunk.tokens;
    forward_chunk<kArithmetic, kMuon>(w, args, checkpoint);
  }
  __syncthreads();
  for (int l = 0; l < o.matrices; ++l) store_final(w, args, whole_matrix(o, l), item.length == 0);
  end_forward(w, args, checkpoint);
}

template <Arithmetic kArithmetic, bool kMuon>
ATLAS_KERNEL void __launch_bounds__(kOmegaThreads, 1)
    omega_forward_kernel(ATLAS_GRID_CONSTANT const OmegaForward args) {
  if constexpr (kCompiledCapability < kArithmeticCapability<kArithmetic>) {
    __trap();  // never launched there
    return;
  }
  DYNAMIC_SHARED(float, shared);
  SHARED_ARRAY(OmegaWork, work, 1);
  if (thread_id() == 0) {
    OmegaArena arena = block_arena(shared, args.space);
    take_forward(work[0], arena, args.options);
  }
  __syncthreads();
  OmegaWork& w = work[0];
  begin_lift(w, args.options);
  const int64_t items = args.in.sequences * args.options.heads * args.options.slices;
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    __syncthreads();
    const OmegaItem item = omega_item(args.options, args.in, index);
    if (thread_id() == 0) w.item = item;
    set_memory(w.before, args.options, w.weights);
    if (w.momentum != nullptr) set_memory(w.rate, args.options, w.momentum);
    if (args.in.chunk_weights[0].present)
      set_memory(w.reference, args.options, args.in.chunk_weights, item);
    else
      set_memory(w.reference, args.options, w.weights);
    __syncthreads();
    forward_item<kArithmetic, kMuon>(w, args);
  }
}

}  // namespace atlas::kernels::cuda
