#pragma once
// The memory M(.) of one chunk: its activations and the error signals d_i of its matrices at M_ref
// (docs/math/omega_rule.md, section 1).
#include "kernels/cuda/omega_chunk.cuh"
#include "kernels/cuda/omega_lift.cuh"

namespace atlas::kernels::cuda {

// act(z) and its first two derivatives.
struct Activated {
  float value, slope, curve;
};

__device__ __forceinline__ Activated activate(OmegaActivation activation, float z) {
  if (activation == OmegaActivation::gelu) {
    const float below = 0.5f + 0.5f * error_function(z * 0.70710678f),
                density = 0.39894228f * exponential(-0.5f * z * z);
    return {z * below, below + z * density, (2.0f - z * z) * density};
  }
  if (activation == OmegaActivation::silu) {
    const float s = reciprocal(1.0f + exponential(-z)), other = 1.0f - s;
    return {z * s, s * (1.0f + z * other), s * other * (2.0f + z * (1.0f - 2.0f * s))};
  }
  return {z, 1, 0};
}

// A memory's matrices in a state; a thread for each. Barrier by the caller.
__device__ __forceinline__ void set_memory(Memory& memory, const OmegaOptions& o,
                                           const float* state) {
  const int l = thread_id();
  if (l < o.matrices) memory.matrix[l] = plain(state + o.sizes.matrix[l].at, o.sizes.matrix[l].ld);
}

// Those of a float tensor's [n, head, out, in].
__device__ __forceinline__ void set_memory(Memory& memory, const OmegaOptions& o,
                                           const OmegaTensor* tensors, const OmegaItem& item) {
  const int l = thread_id();
  if (l >= o.matrices) return;
  const OmegaTensor& t = tensors[l];
  memory.matrix[l] = {static_cast<const float*>(t.data) + item.n * t.stride[0] +
                          item.head * t.stride[1] + item.value_at * t.stride[2],
                      static_cast<int>(t.stride[3]), static_cast<int>(t.stride[2])};
}

// Those of another one.
__device__ __forceinline__ void set_memory(Memory& memory, const OmegaOptions& o,
                                           const Memory& from) {
  const int l = thread_id();
  if (l < o.matrices) memory.matrix[l] = from.matrix[l];
}

// h [n, fp] = act(z1) (∘ z3). Barrier by the caller.
__device__ __forceinline__ void hidden_layer(float* h, const float* z1, const float* z3, int fp,
                                             int n, const OmegaOptions& o) {
  each(n, o.hidden, [&](int i, int j) {
    const int at = i * fp + j;
    const float value = activate(o.activation, z1[at]).value;
    h[at] = is_gated(o) ? value * z3[at] : value;
  });
}

// (3) to (6): e (which holds -v) and the deeper d. z may be d. A barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void memory_signals(const OmegaWork& w, const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  const Memory& reference = w.reference;
  const int last = last_matrix(o), rows = w.chunk.rows();
  float* const e = w.d[last];
  __syncthreads();
  if (o.l2 && o.residual) {
    each(rows, o.value,
         [&](int i, int j) { e[i * sz.vp + j] += w.k[i * sz.kp + w.item.value_at + j]; });
    __syncthreads();
  }
  if (!is_deep(o)) {
    if (o.l2)
      lifted_read<kArithmetic>(e, sz.vp, o.value, w, o, w.k, rows, reference.matrix[0], {1, 1});
    return;
  }
  for (int l = 0; l < sz.first_layer; ++l)
    lifted_read<kArithmetic>(w.z[l], sz.fp, o.hidden, w, o, w.k, rows, reference.matrix[l], {});
  hidden_layer(w.h, w.z[0], w.z[1], sz.fp, rows, o);
  __syncthreads();
  const View& top = reference.matrix[last];
  if (o.l2) product<kArithmetic>(e, sz.vp, rows, o.value, o.hidden, plain(w.h, sz.fp), top, {1, 1});
  product<kArithmetic>(w.b, sz.fp, rows, o.hidden, o.value, plain(e, sz.vp),
                       {top.at, top.column, top.row});
  each(rows, o.hidden, [&](int i, int j) {
    const int at = i * sz.fp + j;
    const float b = w.b[at];
    const Activated act = activate(o.activation, w.z[0][at]);
    if (is_gated(o)) {
      const float z3 = w.z[1][at];
      w.d[1][at] = b * act.value;
      w.d[0][at] = b * z3 * act.slope;
    } else {
      w.d[0][at] = b * act.slope;
    }
  });
  __syncthreads();
}

// out [n, ld] = beta out + alpha row_i input W for matrix l; rows [n, kp] are lifted if it sees
// phi, else h [n, fp] is its input.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void layer_read(float* out, const OmegaWork& w, const OmegaOptions& o,
                                           int l, const float* rows, const float* h, int n,
                                           const View& matrix, const Scaling& scaling) {
  const OmegaMatrix& m = o.sizes.matrix[l];
  if (sees_phi(o, l))
    lifted_read<kArithmetic>(out, m.ld, m.out, w, o, rows, n, matrix, scaling);
  else
    product<kArithmetic>(out, m.ld, n, m.out, m.in, plain(h, o.sizes.fp), matrix, scaling);
}

// matrix = beta matrix + alpha inputᵀ (depth_i d_i) likewise.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void layer_write(float* matrix, const OmegaWork& w,
                                            const OmegaOptions& o, int l, const float* rows,
                                            const float* h, int n, const float* d,
                                            const Scaling& scaling) {
  const OmegaMatrix& m = o.sizes.matrix[l];
  if (sees_phi(o, l))
    lifted_write<kArithmetic>(matrix, m.ld, m.out, w, o, rows, n, d, m.ld, scaling);
  else
    product<kArithmetic>(matrix, m.ld, m.in, m.out, n, transposed(h, o.sizes.fp), plain(d, m.ld),
                         scaling);
}

}  // namespace atlas::kernels::cuda
