#pragma once
// States of the memory between tensors, checkpoints and a block's buffers.
#include "kernels/cuda/omega_memory.cuh"

namespace atlas::kernels::cuda {

// Calls use(at) for every element of a state's matrices.
template <class Use>
__device__ __forceinline__ void each_weight(const OmegaOptions& o, const Use& use) {
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    each(m.in, m.out, [&](int i, int j) { use(m.at + i * m.ld + j); });
  }
}

// A part of a state = factor [n, head, out, in] transposed; absent: zero. Barrier by the caller.
__device__ __forceinline__ void load_matrix(float* state, const OmegaTensor& t,
                                            const OmegaOptions& o, const OmegaItem& item,
                                            const LayerPart& part, float factor = 1) {
  const OmegaMatrix& m = o.sizes.matrix[part.l];
  const int64_t from = matrix_offset(t, item) + part.from * t.stride[2] + part.first * t.stride[3];
  float* const to = state + m.at + part.first * m.ld + part.from;
  each(part.outputs, part.inputs, [&](int j, int i) {
    to[i * m.ld + j] =
        t.present ? factor * load_value(t, from + j * t.stride[2] + i * t.stride[3]) : 0.0f;
  });
}

__device__ __forceinline__ void load_state(float* state, const OmegaTensor* tensors,
                                           const OmegaOptions& o, const OmegaItem& item) {
  for (int l = 0; l < o.matrices; ++l) load_matrix(state, tensors[l], o, item, whole_matrix(o, l));
}

// A part of a state += [n, head, out, in] transposed.
__device__ __forceinline__ void add_tensor(float* state, const OmegaTensor* tensors,
                                           const OmegaOptions& o, const OmegaItem& item,
                                           const LayerPart& part) {
  if (!tensors[0].present) return;
  const OmegaMatrix& m = o.sizes.matrix[part.l];
  const OmegaTensor& t = tensors[part.l];
  const int64_t from = matrix_offset(t, item) + part.from * t.stride[2] + part.first * t.stride[3];
  float* const to = state + m.at + part.first * m.ld + part.from;
  each(part.outputs, part.inputs, [&](int j, int i) {
    to[i * m.ld + j] += load_value(t, from + j * t.stride[2] + i * t.stride[3]);
  });
}

__device__ __forceinline__ void add_tensors(float* state, const OmegaTensor* tensors,
                                            const OmegaOptions& o, const OmegaItem& item) {
  for (int l = 0; l < o.matrices; ++l) add_tensor(state, tensors, o, item, whole_matrix(o, l));
}

// Where a part begins in [N, H, out, in].
__device__ __forceinline__ int64_t stored_offset(const OmegaOptions& o, const OmegaItem& item,
                                                 const LayerPart& part) {
  const int in = o.sizes.matrix[part.l].in;
  return ((item.n * o.heads + item.head) * all_outputs(o, part.l) + item.value_at + part.from) *
             in +
         part.first;
}

// A part of result [N, H, out, in], contiguous, = that of a state, transposed; null: not wanted.
__device__ __forceinline__ void store_grad(const OmegaResult& result, const float* state,
                                           const OmegaOptions& o, const OmegaItem& item,
                                           const LayerPart& part) {
  if (result.data == nullptr) return;
  const OmegaMatrix& m = o.sizes.matrix[part.l];
  const int64_t to = stored_offset(o, item, part);
  const float* const from = state + m.at + part.first * m.ld + part.from;
  each(part.outputs, part.inputs, [&](int j, int i) {
    store_value(result.data, result.dtype, to + j * m.in + i, from[i * m.ld + j]);
  });
}

__device__ __forceinline__ void store_grads(const OmegaResult* results, const float* state,
                                            const OmegaOptions& o, const OmegaItem& item) {
  for (int l = 0; l < o.matrices; ++l) store_grad(results[l], state, o, item, whole_matrix(o, l));
}

// A part of [N, H, out, in], contiguous, = that of a memory, transposed; null: not wanted.
__device__ __forceinline__ void store_matrix(float* tensor, const Memory& memory,
                                             const OmegaOptions& o, const OmegaItem& item,
                                             const LayerPart& part) {
  if (tensor == nullptr) return;
  const View& view = memory.matrix[part.l];
  const float* const from = view.at + part.first * view.row + part.from * view.column;
  float* const to = tensor + stored_offset(o, item, part);
  const int in = o.sizes.matrix[part.l].in;
  each(part.outputs, part.inputs,
       [&](int j, int i) { to[j * in + i] = from[i * view.row + j * view.column]; });
}

__device__ __forceinline__ void store_memory(float* const* tensors, const Memory& memory,
                                             const OmegaOptions& o, const OmegaItem& item) {
  for (int l = 0; l < o.matrices; ++l)
    store_matrix(tensors[l], memory, o, item, whole_matrix(o, l));
}

// Checkpoints are stored as the state is held, without its padding: [in, out] of a matrix. A part
// of it; a state that is null is zero.
__device__ __forceinline__ void save_matrix(float* checkpoint, const float* state,
                                            const OmegaOptions& o, const OmegaItem& item,
                                            int64_t index, const LayerPart& part) {
  const OmegaMatrix& m = o.sizes.matrix[part.l];
  const int width = all_outputs(o, part.l);
  float* const to = checkpoint + (index * o.heads + item.head) * m.in * width +
                    static_cast<int64_t>(part.first) * width + item.value_at + part.from;
  each(part.inputs, part.outputs, [&](int i, int j) {
    to[static_cast<int64_t>(i) * width + j] =
        state == nullptr ? 0.0f : state[m.at + (part.first + i) * m.ld + part.from + j];
  });
}

__device__ __forceinline__ void save_checkpoint(float* const* checkpoints, const float* state,
                                                const OmegaOptions& o, const OmegaItem& item,
                                                int64_t index) {
  if (checkpoints[0] == nullptr) return;
  for (int l = 0; l < o.matrices; ++l)
    save_matrix(checkpoints[l], state, o, item, index, whole_matrix(o, l));
}

// A state from its checkpoint. Barrier by the caller.
__device__ __forceinline__ void load_checkpoint(float* state, const float* const* checkpoints,
                                                const OmegaOptions& o, const OmegaItem& item,
                                                int64_t index) {
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    const int width = all_outputs(o, l);
    const float* const from =
        checkpoints[l] + (index * o.heads + item.head) * m.in * width + item.value_at;
    each(m.in, m.out, [&](int i, int j) {
      state[m.at + i * m.ld + j] = from[static_cast<int64_t>(i) * width + j];
    });
  }
}

// A checkpoint where it lies; a thread for each matrix. Barrier by the caller.
__device__ __forceinline__ void set_checkpoint(Memory& memory, const float* const* checkpoints,
                                               const OmegaOptions& o, const OmegaItem& item,
                                               int64_t index) {
  const int l = thread_id();
  if (l >= o.matrices) return;
  const int width = all_outputs(o, l);
  memory.matrix[l] = plain(
      checkpoints[l] + (index * o.heads + item.head) * o.sizes.matrix[l].in * width + item.value_at,
      width);
}

// Columns [from, from + width) of `whole` of the final tail: the last W-1 tokens, from this call or
// from the tail it began with; zeros before the sequence's start.
__device__ __forceinline__ void store_tail(const OmegaResult& result, const OmegaTensor& tokens,
                                           const OmegaTensor& tail, const OmegaOptions& o,
                                           const OmegaItem& item, int from, int width, int whole) {
  if (result.data == nullptr) return;
  const int slots = o.window - 1;
  const int64_t at = token_offset(tokens, item) + from * tokens.stride[3],
                tail_at =
                    item.n * tail.stride[0] + item.head * tail.stride[2] + from * tail.stride[3];
  each(slots, width, [&](int slot, int j) {
    const int64_t token = item.length - slots + slot;
    float value = 0;
    if (token >= 0)
      value = load_value(tokens, at + token * tokens.stride[1] + j * tokens.stride[3]);
    else if (tail.present && item.position + token >= 0)
      value = load_value(tail, tail_at + (slots + token) * tail.stride[1] + j * tail.stride[3]);
    store_value(result.data, result.dtype,
                ((item.n * slots + slot) * o.heads + item.head) * whole + from + j, value);
  });
}

}  // namespace atlas::kernels::cuda
