#pragma once
// Adjoints of what the memory does in one chunk: the activations of the queries and the error
// signals at M_ref (docs/math/omega_rule.md, sections 5 and 7, (31), (45), (46)).
#include "kernels/cuda/omega_lift_backward.cuh"
#include "kernels/cuda/omega_memory.cuh"

namespace atlas::kernels::cuda {

// From grad_h of the queries' hidden layer to g.queries, for `n` tokens from `first`. Barrier by
// the caller.
__device__ __forceinline__ void hidden_layer_backward(const OmegaWork& w, const OmegaGrads& g,
                                                      const OmegaOptions& o, int first, int n) {
  const int from = first * o.sizes.fp;
  each(n, o.hidden, [&](int i, int j) {
    const int at = from + i * o.sizes.fp + j;
    const float grad = g.query_h[at];
    const Activated act = activate(o.activation, w.queries[0][at]);
    if (is_gated(o)) {
      g.queries[0][at] = grad * w.queries[1][at] * act.slope;
      g.queries[1][at] = grad * act.value;
    } else {
      g.queries[0][at] = grad * act.slope;
    }
  });
}

// Through d1 (and d3): on entry g.d of the first layer, on return w.b holds grad_b and g.d what
// reaches z without the way through h. Barrier by the caller.
__device__ __forceinline__ void inner_signals_backward(const OmegaWork& w, const OmegaGrads& g,
                                                       const OmegaOptions& o, int rows) {
  each(rows, o.hidden, [&](int i, int j) {
    const int at = i * o.sizes.fp + j;
    const Activated act = activate(o.activation, w.z[0][at]);
    const float b = w.b[at], d1 = g.d[0][at];
    if (!is_gated(o)) {
      w.b[at] = d1 * act.slope;
      g.d[0][at] = d1 * b * act.curve;
      return;
    }
    const float z3 = w.z[1][at], d3 = g.d[1][at];
    w.b[at] = d1 * z3 * act.slope + d3 * act.value;
    g.d[0][at] = b * (d1 * z3 * act.curve + d3 * act.slope);
    g.d[1][at] = d1 * b * act.slope;
  });
}

// Adds what comes through h. Barrier by the caller.
__device__ __forceinline__ void rows_hidden_backward(const OmegaWork& w, const OmegaGrads& g,
                                                     const OmegaOptions& o, int rows) {
  each(rows, o.hidden, [&](int i, int j) {
    const int at = i * o.sizes.fp + j;
    const float grad = g.h[at];
    const Activated act = activate(o.activation, w.z[0][at]);
    if (is_gated(o)) {
      g.d[0][at] += grad * w.z[1][at] * act.slope;
      g.d[1][at] += grad * act.value;
    } else {
      g.d[0][at] += grad * act.slope;
    }
  });
}

// Adjoint of memory_signals up to the first layer: g.d of e becomes its whole gradient, that of a
// deep memory's first layer the gradient of z. M_ref's own comes later, from
// signals_to_reference: until then the chunk's incoming gradient of the memory is needed. A barrier
// comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void signals_backward(const OmegaWork& w, const OmegaGrads& g,
                                                 const OmegaOptions& o) {
  if (!is_deep(o)) return;
  const OmegaSizes& sz = o.sizes;
  const int last = last_matrix(o), rows = w.chunk.rows;
  const View& top = w.reference.matrix[last];
  inner_signals_backward(w, g, o, rows);
  __syncthreads();
  product<kArithmetic>(g.d[last], sz.vp, rows, o.value, o.hidden, plain(w.b, sz.fp), top, {1, 1});
  if (o.l2)
    product<kArithmetic>(g.h, sz.fp, rows, o.hidden, o.value, plain(g.d[last], sz.vp),
                         {top.at, top.column, top.row}, {1, 1});
  rows_hidden_backward(w, g, o, rows);
  __syncthreads();
}

// What signals_backward leaves for the keys: out += the gradient of phi(k) through M_ref.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void signals_to_inputs(const OmegaWork& w, const OmegaGrads& g,
                                                  const OmegaOptions& o, float* out, int ld,
                                                  int first, int count) {
  if (!is_deep(o) && !o.l2) return;
  for (int l = 0; l < o.sizes.first_layer; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    back_through<kArithmetic>(out, ld, w.chunk.rows, first, count, g.d[l], m.ld, m.out,
                              w.reference.matrix[l], 1, nullptr);
  }
}

// ... and for a part of M_ref, whose gradient, a state, is added to.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void signals_to_reference(const OmegaWork& w, const OmegaGrads& g,
                                                     const OmegaOptions& o, float* reference,
                                                     const LayerPart& part) {
  const OmegaSizes& sz = o.sizes;
  const int l = part.l, rows = w.chunk.rows;
  float* const grad = reference + sz.matrix[l].at;
  if (is_deep(o) && l == last_matrix(o))
    product<kArithmetic>(grad + part.first * sz.vp + part.from, sz.vp, part.inputs, part.outputs,
                         rows, transposed(w.b + part.first, sz.fp),
                         plain(w.d[l] + part.from, sz.vp), {1, 1});
  if (o.l2 || l < last_matrix(o))
    layer_write<kArithmetic>(grad, w, o, part, w.k, w.h, rows, g.d[l], {1, 1});
}

template <Arithmetic kArithmetic>
__device__ __forceinline__ void reference_backward(const OmegaWork& w, const OmegaGrads& g,
                                                   const OmegaOptions& o, float* reference) {
  for (int l = 0; l < o.matrices; ++l)
    signals_to_reference<kArithmetic>(w, g, o, reference, whole_matrix(o, l));
}

}  // namespace atlas::kernels::cuda
