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

// state = each [n, head, out, in] transposed; absent: zero. Barrier by the caller.
__device__ __forceinline__ void load_state(float* state, const OmegaTensor* tensors,
                                           const OmegaOptions& o, const OmegaItem& item) {
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    const OmegaTensor& t = tensors[l];
    const int64_t from =
        item.n * t.stride[0] + item.head * t.stride[1] + item.value_at * t.stride[2];
    each(m.out, m.in, [&](int j, int i) {
      state[m.at + i * m.ld + j] =
          t.present ? load_value(t, from + j * t.stride[2] + i * t.stride[3]) : 0.0f;
    });
  }
}

// state += each [n, head, out, in] transposed.
__device__ __forceinline__ void add_tensors(float* state, const OmegaTensor* tensors,
                                            const OmegaOptions& o, const OmegaItem& item) {
  if (!tensors[0].present) return;
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    const OmegaTensor& t = tensors[l];
    const int64_t from = item.n * t.stride[0] + item.head * t.stride[1];
    each(m.out, m.in, [&](int j, int i) {
      state[m.at + i * m.ld + j] += load_value(t, from + j * t.stride[2] + i * t.stride[3]);
    });
  }
}

__device__ __forceinline__ void store_grads(const OmegaResult* results, const float* state,
                                            const OmegaOptions& o, const OmegaItem& item) {
  if (results[0].data == nullptr) return;
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    const int64_t to = (item.n * o.heads + item.head) * m.in * m.out;
    each(m.out, m.in, [&](int j, int i) {
      store_value(results[l].data, results[l].dtype, to + j * m.in + i, state[m.at + i * m.ld + j]);
    });
  }
}

// Each [N, H, out, in], contiguous, = a memory transposed; null: not wanted.
__device__ __forceinline__ void store_memory(float* const* tensors, const Memory& memory,
                                             const OmegaOptions& o, const OmegaItem& item) {
  if (tensors[0] == nullptr) return;
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    const View& from = memory.matrix[l];
    float* const to =
        tensors[l] + ((item.n * o.heads + item.head) * all_outputs(o, l) + item.value_at) * m.in;
    each(m.out, m.in,
         [&](int j, int i) { to[j * m.in + i] = from.at[i * from.row + j * from.column]; });
  }
}

// Checkpoints are stored as the state is held, without its padding: each [in, out].
__device__ __forceinline__ void save_checkpoint(float* const* checkpoints, const float* state,
                                                const OmegaOptions& o, const OmegaItem& item,
                                                int64_t index) {
  if (checkpoints[0] == nullptr) return;
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    const int width = all_outputs(o, l);
    float* const to = checkpoints[l] + (index * o.heads + item.head) * m.in * width + item.value_at;
    each(m.in, m.out, [&](int i, int j) {
      to[static_cast<int64_t>(i) * width + j] =
          state == nullptr ? 0.0f : state[m.at + i * m.ld + j];
    });
  }
}

// A checkpoint where it lies; a thread for each matrix. Barrier by the caller.
__device__ __forceinline__ void set_checkpoint(Memory& memory, const float* const* checkpoints,
                                               const OmegaOptions& o, int64_t index, int head) {
  const int l = thread_id();
  if (l >= o.matrices) return;
  const OmegaMatrix& m = o.sizes.matrix[l];
  memory.matrix[l] = plain(checkpoints[l] + (index * o.heads + head) * m.in * m.out, m.out);
}

}  // namespace atlas::kernels::cuda
