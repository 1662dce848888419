#pragma once
// The backward pass of the exponential Omega rule (docs/math/exp_omega_rule.md, section 5): a block
// takes a (sequence, head) and visits its chunks last to first. The gradients of rows, keys and
// values, which grow with the sequence, are in the block's scratch; the rows come from what the
// forward saved. Blocks exchange nothing.
#include "kernels/cuda/exp_omega_chunk_backward.cuh"
#include "kernels/cuda/exp_omega_sequence_grads.cuh"

namespace atlas::kernels::cuda {

// Differentiates the chunk in w, `number` of its sequence. `own_reference`: M_ref is an argument. A
// barrier comes before.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void exp_backward_chunk(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                                   const ExpOmegaBackward& args, int number,
                                                   bool own_reference) {
  const OmegaOptions& o = args.options.omega;
  const OmegaSizes& sz = o.sizes;
  const OmegaChunk& c = w.chunk;
  const int last = last_matrix(o), tokens = c.tokens, rows = c.rows;
  const int64_t end = w.item.position + w.item.length;
  load_chunk(w, o, args.in.omega);
  const OmegaTensor& grad_o = args.grad_o;
  const int64_t at = token_offset(grad_o, w.item) + c.first * grad_o.stride[1];
  each(tokens, o.value, [&](int t, int j) {
    g.y[t * sz.vp + j] = grad_o.present
                             ? load_value(grad_o, at + t * grad_o.stride[1] + j * grad_o.stride[3])
                             : 0.0f;
  });
  each(rows + tokens, o.key, [&](int i, int j) { g.k[i * sz.kp + j] = 0; });
  each(tokens, [&](int t) { g.p[t] = g.s[t] = g.m[t] = 0; });
  multiply_moves(g, number);
  __syncthreads();
  scan_chunk(w, o, args.in.omega, false);
  if (is_deep(o)) rebuild_matrices(w, g, o, args.in.omega, args.saved, number);
  load_saved<kArithmetic>(w, args, number);
  each(rows + tokens, [&](int i) { g.factor[i] = i < rows ? 1.0f : w.m[i - rows]; });
  if (args.options.normalize == ExpNormalize::rms) root_mean_square_backward<kArithmetic>(w, g, o);
  if (is_deep(o)) {
    last_layer_queries<kArithmetic>(w, g, o);
    last_layer_rows<kArithmetic>(w, g, o);
    for (int l = 0; l < sz.first_layer; ++l) {
      read_gates_backward<kArithmetic>(w, g, o, l, g.queries[l]);
      if (g.wants_u) read_to_inputs<kArithmetic>(w, o, l, g.queries[l], g.q, sz.kp, 0, o.key);
    }
  }
  if (args.options.normalize == ExpNormalize::softmax) centre_sums(w, g, args);
  near_backward<kArithmetic>(w, g, args.options, args.in);
  if (is_deep(o)) {
    signals_backward<kArithmetic>(w, g, o);
    if (g.wants_x) signals_to_inputs<kArithmetic>(w, g, o, g.k, sz.kp, 0, o.key);
  }
  const bool leaves = c.first + tokens == w.item.length && end % o.chunk_size != 0;
  past_backward<kArithmetic>(w, g, args, number, own_reference, leaves ? args.final_capacity : 0);
  if (is_deep(o)) {
    float* const reference = own_reference ? g.reference : g.weights;
    dual_backward_states<kArithmetic>(w, g, o);
    reference_backward<kArithmetic>(w, g, o, reference);
    // The last chunk's M_ref is the final chunk_weights unless the chunk is closed.
    if (leaves) add_tensors(reference, args.grad_final_chunk_weights, o, w.item);
  }
  scan_backward(w, g, o);
  if (!o.residual) return;
  each(tokens, o.value, [&](int t, int j) { g.q[t * sz.kp + j] += g.y[t * sz.vp + j]; });
  if (o.l2)
    each(rows, o.value, [&](int i, int j) { g.k[i * sz.kp + j] += g.d[last][i * sz.vp + j]; });
}

// Where the chunk and what belongs to it are. A barrier comes before, and one after.
__device__ __forceinline__ void set_chunk(ExpOmegaWork& w, ExpOmegaGrads& g,
                                          const ExpOmegaBackward& args, const OmegaChunk& chunk,
                                          int number, bool own_reference) {
  const OmegaOptions& o = args.options.omega;
  if (is_deep(o)) {
    if (own_reference)
      set_memory(w.reference, o, args.in.omega.chunk_weights, w.item);
    else
      set_memory(w.reference, o, w.before);
  }
  if (thread_id() == 0) {
    const int rows = chunk.rows, last = last_matrix(o);
    const OmegaMatrix& m = o.sizes.matrix[last];
    w.chunk = chunk;
    w.q = w.k + rows * o.sizes.kp;
    g.q = g.k + rows * o.sizes.kp;
    if (!is_deep(o)) {
      g.y = g.d[0] + rows * o.sizes.vp;
    } else {
      g.queries[0] = g.d[0] + rows * o.sizes.fp;
      if (is_gated(o)) g.queries[1] = g.d[1] + rows * o.sizes.fp;
      if (o.momentum)
        w.rate.matrix[last] =
            plain(args.saved.momentum +
                      ((w.item.checkpoint + number) * o.heads + w.item.head) * m.in * m.out,
                  m.out);
    }
  }
  __syncthreads();
}

// The item is in w. A barrier comes before.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void exp_backward_item(ExpOmegaWork& w, ExpOmegaGrads& g,
                                                  const ExpOmegaBackward& args) {
  const OmegaOptions& o = args.options.omega;
  const OmegaItem& item = w.item;
  begin_exp_backward(w, g, args);
  int chunks = 0;
  for (int64_t end = item.length; end > 0; end -= chunk_tokens_before(o, item, end)) ++chunks;
  scan_moves(w, g, o, args.in.omega, chunks);
  for (int64_t end = item.length; end > 0;) {
    const int tokens = chunk_tokens_before(o, item, end);
    const bool own_reference = --chunks == 0 && args.in.reference[0].present;
    end -= tokens;
    __syncthreads();
    set_chunk(w, g, args, chunk_of(o, item, end, tokens), chunks, own_reference);
    exp_backward_chunk<kArithmetic>(w, g, args, chunks, own_reference);
    __syncthreads();
    store_gates(w, g, o, args.in.omega, args);
    store_tokens(args.grad_q, 0, {0, o.key, o.key}, g.q, o.sizes.kp, 0, tokens, w, o,
                 args.in.omega);
    settle_window(w, g, args.options);
  }
  __syncthreads();
  end_exp_backward(w, g, args);
}

// Gradients of an item without a valid position: NaN, but of the state's rows, which are zero.
__device__ __forceinline__ void store_invalid(const ExpOmegaBackward& args, const OmegaItem& item) {
  const OmegaOptions& o = args.options.omega;
  const int slots = o.window - 1, last = last_matrix(o);
  const int64_t heads = o.heads, slot = item.n * slots * heads + item.head;
  const int64_t token = (item.batch * args.in.omega.tokens + item.begin) * heads + item.head;
  store_nan(args.grad_q, o.key, token, heads, item.length);
  store_nan(args.grad_k, o.key, token, heads, item.length);
  store_nan(args.grad_v, o.value, token, heads, item.length);
  store_nan(args.grad_gamma, o.window, token, heads, item.length);
  store_nan(args.grad_eta, 1, token, heads, item.length);
  store_nan(args.grad_log_alpha, 1, token, heads, item.length);
  store_nan(args.grad_log_theta, 1, token, heads, item.length);
  store_nan(args.grad_k_tail, o.key, slot, heads, slots);
  store_nan(args.grad_v_tail, o.value, slot, heads, slots);
  if (!is_deep(o)) return;
  for (int l = 0; l < o.matrices; ++l) {
    store_nan_matrix(args.grad_weights[l], o.sizes.matrix[l], o, item);
    store_nan_matrix(args.grad_chunk_weights[l], o.sizes.matrix[l], o, item);
  }
  store_nan_matrix(args.grad_weights_momentum, o.sizes.matrix[last], o, item);
}

template <Arithmetic kArithmetic>
ATLAS_KERNEL void __launch_bounds__(kOmegaThreads, 1)
    exp_omega_backward_kernel(ATLAS_GRID_CONSTANT const ExpOmegaBackward args) {
  if constexpr (kCompiledCapability < kArithmeticCapability<kArithmetic>) {
    __trap();  // never launched there
    return;
  }
  DYNAMIC_SHARED(float, shared);
  SHARED_ARRAY(ExpOmegaWork, work, 1);
  SHARED_ARRAY(ExpOmegaGrads, grads, 1);
  ExpOmegaWork& w = work[0];
  ExpOmegaGrads& g = grads[0];
  const OmegaOptions& o = args.options.omega;
  if (thread_id() == 0) {
    OmegaArena arena = block_arena(shared, args.space);
    take_exp_backward(w, g, arena, args.options, args.in.reference[0].present);
    g.wants_u = args.grad_q.data != nullptr;
    g.wants_x = args.grad_k.data != nullptr || args.grad_keys.data != nullptr ||
                args.grad_k_tail.data != nullptr;
  }
  __syncthreads();
  if (is_deep(o)) set_memory(w.before, o, w.weights);
  const int64_t items = args.in.omega.sequences * o.heads;
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    __syncthreads();
    const OmegaItem item = exp_omega_item(o, args.in, index, args.final_capacity);
    if (item.position < 0) {
      store_invalid(args, item);
      continue;
    }
    if (thread_id() == 0) w.item = item;
    __syncthreads();
    exp_backward_item<kArithmetic>(w, g, args);
  }
}

}  // namespace atlas::kernels::cuda
