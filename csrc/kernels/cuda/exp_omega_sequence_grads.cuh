#pragma once
// Gradients that live as long as a sequence's backward pass: of rows, keys, values, tails and the
// matrices; from the final state's, over each chunk's window, to those of what the call began with.
#include "kernels/cuda/exp_omega_rebuild.cuh"

namespace atlas::kernels::cuda {

// Where the gradients of token `token` of the call (negative: of the tails) lie in g.keys and
// g.values.
__device__ __forceinline__ int64_t key_row(const ExpOmegaWork& w, const ExpOmegaOptions& options,
                                           int64_t token) {
  return token >= 0 ? w.item.position + token
                    : options.most_rows + options.omega.window - 1 + token;
}

// g.past and g.keys of all rows, from the final state's gradients. Barrier by the caller.
__device__ __forceinline__ void begin_past(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                           const ExpOmegaBackward& args) {
  const OmegaOptions& o = args.options.omega;
  const OmegaItem& item = w.item;
  const int width = row_width(o), sets = row_sets(o), row = static_cast<int>(past_ld(o));
  const int64_t end = item.position + item.length;
  // The final M_ref is M_T where the last token closed a chunk.
  const bool closed = item.length > 0 && end % o.chunk_size == 0;
  const int64_t given = args.final_capacity;
  for (int64_t first = 0; first < end; first += kKeyBlock) {
    const int count = static_cast<int>(smaller(kKeyBlock, end - first));
    each(count, row, [&](int i, int j) {
      const int part = static_cast<int>(static_cast<unsigned>(j) / static_cast<unsigned>(width));
      const int column = j - part * width, set = part < sets ? part : part - sets;
      const int64_t at = first + i;
      float grad = 0;
      if (at < given && part < sets) {
        grad = state_row(args.grad_final_coefficients[set], item, at, column);
        if (closed) grad += state_row(args.grad_final_reference[set], item, at, column);
      } else if (at < given) {
        grad = state_row(args.grad_final_momentum[set], item, at, column);
      }
      g.past[at * row + j] = grad;
    });
    each(count, o.key, [&](int i, int j) {
      const int64_t at = first + i;
      g.keys[at * o.sizes.kp + j] =
          at < given ? state_row(args.grad_final_keys, item, at, j) : 0.0f;
    });
  }
}

// Then the tails' part of g.keys, and g.values, from the final tails' gradients. Slots before the
// sequence's start do not exist. A barrier comes before.
__device__ __forceinline__ void begin_tails(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                            const ExpOmegaBackward& args) {
  const OmegaOptions& o = args.options.omega;
  const OmegaItem& item = w.item;
  const int slots = o.window - 1, kp = o.sizes.kp, vp = o.sizes.vp;
  float* const tail = g.keys + args.options.most_rows * kp;
  each(slots, o.key, [&](int slot, int j) { tail[slot * kp + j] = 0; });
  for (int64_t first = 0; first < slots + item.length; first += kKeyBlock)
    each(static_cast<int>(smaller(kKeyBlock, slots + item.length - first)), o.value,
         [&](int i, int j) { g.values[(first + i) * vp + j] = 0; });
  __syncthreads();
  const auto each_slot = [&](int width, const OmegaTensor& grad, const auto& add) {
    if (!grad.present) return;
    each(slots, width, [&](int slot, int j) {
      const int64_t token = item.length - slots + slot;
      if (item.position + token >= 0) add(token, j, state_row(grad, item, slot, j));
    });
  };
  each_slot(o.key, args.grad_final_k_tail, [&](int64_t token, int j, float grad) {
    g.keys[key_row(w, args.options, token) * kp + j] += grad;
  });
  each_slot(o.value, args.grad_final_v_tail,
            [&](int64_t token, int j, float grad) { g.values[(slots + token) * vp + j] += grad; });
}

// Takes the gradients of the final state but for those of M_ref that the last chunk takes. A
// barrier comes before and after.
__device__ __forceinline__ void begin_exp_backward(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                                   const ExpOmegaBackward& args) {
  const OmegaOptions& o = args.options.omega;
  const OmegaItem& item = w.item;
  begin_past(w, g, args);
  __syncthreads();
  begin_tails(w, g, args);
  if (is_deep(o)) {
    load_state(g.weights, args.grad_final_weights, o, item);
    if (o.momentum)
      load_matrix(g.momentum, args.grad_final_weights_momentum, o, item,
                  whole_matrix(o, last_matrix(o)));
    if (g.reference != nullptr) each_weight(o, [&](int at) { g.reference[at] = 0; });
    __syncthreads();
    const bool closed = item.length > 0 && (item.position + item.length) % o.chunk_size == 0;
    if (closed || item.length == 0)
      add_tensors(closed || g.reference == nullptr ? g.weights : g.reference,
                  args.grad_final_chunk_weights, o, item);
  }
  __syncthreads();
}

// Adds the gradients of the chunk's window rows to those of the tokens they are of. A barrier comes
// before.
__device__ __forceinline__ void settle_window(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                              const ExpOmegaOptions& options) {
  const OmegaOptions& o = options.omega;
  const OmegaChunk& c = w.chunk;
  const int kp = o.sizes.kp, vp = o.sizes.vp;
  const int64_t first = c.first - c.overhang;
  const float* const grad_e = g.d[last_matrix(o)];
  each(c.rows, o.key,
       [&](int i, int j) { g.keys[key_row(w, options, first + i) * kp + j] += g.k[i * kp + j]; });
  each(c.rows, o.value,
       [&](int i, int j) { g.values[(o.window - 1 + first + i) * vp + j] -= grad_e[i * vp + j]; });
}

// Rows of `result`, of which the first is number `first` and the next `step` further, = rows
// [count, ld]; null: not wanted.
__device__ __forceinline__ void store_grad_rows(const OmegaResult& result, const float* rows,
                                                int64_t ld, int width, int64_t first, int64_t step,
                                                int64_t count) {
  if (result.data == nullptr) return;
  each(static_cast<int>(count), width, [&](int i, int j) {
    store_value(result.data, result.dtype, (first + i * step) * width + j, rows[i * ld + j]);
  });
}

// What is left after the first chunk: gradients of tokens, and of the state the call began with. A
// barrier comes before.
__device__ __forceinline__ void end_exp_backward(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                                 const ExpOmegaBackward& args) {
  const OmegaOptions& o = args.options.omega;
  const OmegaSizes& sz = o.sizes;
  const OmegaItem& item = w.item;
  const int slots = o.window - 1, width = row_width(o), sets = row_sets(o);
  const int64_t heads = o.heads, seen = item.position, row = past_ld(o);
  const int64_t token = (item.batch * args.in.omega.tokens + item.begin) * heads + item.head;
  const int64_t tail = item.n * slots * heads + item.head;
  const int64_t state = item.n * args.capacity * heads + item.head;
  store_grad_rows(args.grad_k, g.keys + seen * sz.kp, sz.kp, o.key, token, heads, item.length);
  store_grad_rows(args.grad_v, g.values + slots * sz.vp, sz.vp, o.value, token, heads, item.length);
  store_grad_rows(args.grad_k_tail, g.keys + args.options.most_rows * sz.kp, sz.kp, o.key, tail,
                  heads, slots);
  store_grad_rows(args.grad_v_tail, g.values, sz.vp, o.value, tail, heads, slots);
  store_grad_rows(args.grad_keys, g.keys, sz.kp, o.key, state, heads, seen);
  for (int set = 0; set < sets; ++set) {
    const float* const past = g.past + set * width;
    store_grad_rows(args.grad_coefficients[set], past, row, width, state, heads, seen);
    if (o.momentum)
      store_grad_rows(args.grad_momentum[set], past + sets * width, row, width, state, heads, seen);
    const OmegaResult& reference = args.grad_reference[set];
    if (item.length == 0 && reference.data != nullptr)  // else the first chunk has stored them
      each(args.final_capacity < 0 ? 0 : static_cast<int>(seen), width, [&](int i, int j) {
        store_value(reference.data, reference.dtype, (state + i * heads) * width + j,
                    state_row(args.grad_final_reference[set], item, i, j));
      });
  }
  if (!is_deep(o)) return;
  if (g.reference != nullptr) store_grads(args.grad_chunk_weights, g.reference, o, item);
  store_grads(args.grad_weights, g.weights, o, item);
  if (o.momentum)
    store_grad(args.grad_weights_momentum, g.momentum, o, item, whole_matrix(o, last_matrix(o)));
}

}  // namespace atlas::kernels::cuda
