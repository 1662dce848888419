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

// Where the slice's part of [n, head] begins in a tensor [N, H, out, in].
__device__ __forceinline__ int64_t matrix_offset(const OmegaTensor& t, const OmegaItem& item) {
  return item.n * t.stride[0] + item.head * t.stride[1] + item.value_at * t.stride[2];
}

// Those of a float tensor's [n, head, out, in].
__device__ __forceinline__ void set_memory(Memory& memory, const OmegaOptions& o,
                                           const OmegaTensor* tensors, const OmegaItem& item) {
  const int l = thread_id();
  if (l >= o.matrices) return;
  const OmegaTensor& t = tensors[l];
  memory.matrix[l] = {static_cast<const float*>(t.data) + matrix_offset(t, item),
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

// Inputs [first, first + inputs) and outputs [from, from + outputs) of matrix l.
struct LayerPart {
  int l, first, inputs, from, outputs;
};

__device__ __forceinline__ LayerPart whole_matrix(const OmegaOptions& o, int l) {
  return {l, 0, o.sizes.matrix[l].in, 0, o.sizes.matrix[l].out};
}

// Calls use(first, count, x, ld) for columns [first, first + count) of the part's inputs, x [n,
// ld]: phi of the rows [n, kp], tile by tile, or h [n, fp]. One place, so that a product in it is
// called from one place. A barrier comes before.
template <class Use>
__device__ __forceinline__ void each_layer_input(const OmegaWork& w, const OmegaOptions& o,
                                                 const LayerPart& part, const float* rows,
                                                 const float* h, int n, const Use& use) {
  const OmegaSizes& sz = o.sizes;
  const bool phi = sees_phi(o, part.l), lifted = phi && o.degree > 0;
  const int end = part.first + part.inputs, step = lifted ? sz.tile : part.inputs;
  for (int first = part.first; first < end; first += step) {
    const int count = min(step, end - first);
    const float* x = (phi ? rows : h) + first;
    int ld = phi ? sz.kp : sz.fp;
    if (lifted) {
      lift_tile(w, o, rows, n, first, count);
      x = w.lift.tile;
      ld = sz.tp;
    }
    use(first, count, x, ld);
  }
}

// out [n, ld] = beta out + alpha row_i input W for matrix l.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void layer_read(float* out, const OmegaWork& w, const OmegaOptions& o,
                                           int l, const float* rows, const float* h, int n,
                                           const View& matrix, Scaling scaling) {
  const OmegaMatrix& m = o.sizes.matrix[l];
  const LayerPart whole = whole_matrix(o, l);
  each_layer_input(w, o, whole, rows, h, n, [&](int first, int count, const float* x, int ld) {
    const View part{matrix.at + static_cast<int64_t>(first) * matrix.row, matrix.row,
                    matrix.column};
    product<kArithmetic>(out, m.ld, n, m.out, count, plain(x, ld), part, scaling);
    scaling.beta = 1;
  });
}

// matrix = beta matrix + alpha inputᵀ (depth_i d_i) in a part of it.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void layer_write(float* matrix, const OmegaWork& w,
                                            const OmegaOptions& o, const LayerPart& part,
                                            const float* rows, const float* h, int n,
                                            const float* d, const Scaling& scaling) {
  const int ld = o.sizes.matrix[part.l].ld;
  each_layer_input(w, o, part, rows, h, n, [&](int first, int count, const float* x, int x_ld) {
    product<kArithmetic>(matrix + static_cast<int64_t>(first) * ld + part.from, ld, count,
                         part.outputs, n, transposed(x, x_ld), plain(d + part.from, ld), scaling);
  });
}

template <Arithmetic kArithmetic>
__device__ __forceinline__ void layer_write(float* matrix, const OmegaWork& w,
                                            const OmegaOptions& o, int l, const float* rows,
                                            const float* h, int n, const float* d,
                                            const Scaling& scaling) {
  layer_write<kArithmetic>(matrix, w, o, whole_matrix(o, l), rows, h, n, d, scaling);
}

// (5), (6): d of the first layer from b and the rows' z1, z3, which may be d. Barrier by the
// caller.
__device__ __forceinline__ void inner_signals(const OmegaWork& w, const OmegaOptions& o, int rows,
                                              const float* z1, const float* z3) {
  each(rows, o.hidden, [&](int i, int j) {
    const int at = i * o.sizes.fp + j;
    const float b = w.b[at];
    const Activated act = activate(o.activation, z1[at]);
    if (is_gated(o)) {
      const float gate = z3[at];
      w.d[1][at] = b * act.value;
      w.d[0][at] = b * gate * act.slope;
    } else {
      w.d[0][at] = b * act.slope;
    }
  });
}

// e (which holds -v) with what the residual adds to M.
__device__ __forceinline__ void add_residual(const OmegaWork& w, const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  float* const e = w.d[last_matrix(o)];
  if (!o.l2 || !o.residual) return;
  each(w.chunk.rows, o.value,
       [&](int i, int j) { e[i * sz.vp + j] += w.k[i * sz.kp + w.item.value_at + j]; });
  __syncthreads();
}

// (4) to (6) of a deep memory: e and the deeper d from w.z, which may be d. A barrier comes before
// and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void deep_signals(const OmegaWork& w, const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  const int last = last_matrix(o), rows = w.chunk.rows;
  const View& top = w.reference.matrix[last];
  float* const e = w.d[last];
  hidden_layer(w.h, w.z[0], w.z[1], sz.fp, rows, o);
  __syncthreads();
  if (o.l2) product<kArithmetic>(e, sz.vp, rows, o.value, o.hidden, plain(w.h, sz.fp), top, {1, 1});
  product<kArithmetic>(w.b, sz.fp, rows, o.hidden, o.value, plain(e, sz.vp),
                       {top.at, top.column, top.row});
  inner_signals(w, o, rows, w.z[0], w.z[1]);
  __syncthreads();
}

// (3) to (6): e (which holds -v) and the deeper d. z may be d. A barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void memory_signals(const OmegaWork& w, const OmegaOptions& o) {
  const int rows = w.chunk.rows;
  __syncthreads();
  add_residual(w, o);
  if (!is_deep(o)) {
    if (o.l2)
      layer_read<kArithmetic>(w.d[0], w, o, 0, w.k, w.h, rows, w.reference.matrix[0], {1, 1});
    return;
  }
  for (int l = 0; l < o.sizes.first_layer; ++l)
    layer_read<kArithmetic>(w.z[l], w, o, l, w.k, w.h, rows, w.reference.matrix[l], {});
  deep_signals<kArithmetic>(w, o);
}

}  // namespace atlas::kernels::cuda
