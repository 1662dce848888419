// The memory M(.) of one chunk: its hidden layer, and the error signals d_i of its matrices with
// their adjoint (docs/math/omega_rule.md, sections 1 and 7). Included by kernel bodies after
// isa_begin.h.
//
// The forward of n inputs is z1 = x W1ᵀ, z3 = x W3ᵀ, h = act(z1) (* z3), y = h W2ᵀ; a linear memory
// is its last matrix alone.
#pragma once
#include "kernels/cpu/activation.h"
#include "kernels/cpu/omega_chunk.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// The hidden layer of n inputs; rows have fp elements. Without a gate z[1] is not there and h is a.
template <class T>
struct Hidden {
  T* z[2];   // z1, z3
  T* a;      // act(z1)
  T* slope;  // act'(z1)
  T* h;

  Hidden(Arena<T>& arena, const Sizes& sz, int64_t n) {
    if (!sz.deep()) return;
    for (int l = 0; l < sz.first_layer(); ++l) z[l] = arena.take(n * sz.fp);
    a = arena.take(n * sz.fp);
    slope = arena.take(n * sz.fp);
    h = sz.gated() ? arena.take(n * sz.fp) : a;
  }
};

// From z to h for `rows` rows; slope is filled only if asked for.
template <class T>
inline void activate_hidden(const Hidden<T>& hidden, const Sizes& sz, Activation activation,
                            int64_t first, int64_t rows, bool slopes) {
  const int64_t from = first * sz.fp;
  T* const a = hidden.a + from;
  T* const slope = hidden.slope + from;
  if (slopes)
    each_activated(activation, hidden.z[0] + from, rows * sz.fp, [&](int64_t i, Activated<T> act) {
      store(a + i, act.value);
      store(slope + i, act.slope);
    });
  else
    each_activated(activation, hidden.z[0] + from, rows * sz.fp,
                   [&](int64_t i, Activated<T> act) { store(a + i, act.value); });
  if (sz.gated())
    for (int64_t i = from; i < from + rows * sz.fp; i += kWidth<T>)
      store(hidden.h + i, load(hidden.a + i) * load(hidden.z[1] + i));
}

// The adjoint: grad_z of z1 (and z3) from grad_h, slopes at hand. grad_z[0] may be grad_h.
template <class T>
inline void activate_hidden_backward(T* const* grad_z, const T* grad_h, const Hidden<T>& hidden,
                                     const Sizes& sz, int64_t first, int64_t rows) {
  for (int64_t i = first * sz.fp; i < (first + rows) * sz.fp; i += kWidth<T>) {
    const Vec<T> grad = load(grad_h + i);
    Vec<T> grad_a = grad;
    if (sz.gated()) {
      grad_a = grad * load(hidden.z[1] + i);
      store(grad_z[1] + i, grad * load(hidden.a + i));
    }
    store(grad_z[0] + i, grad_a * load(hidden.slope + i));
  }
}

// What the window's rows contribute to the gradient of every matrix at M_ref: d_i input_iᵀ.
template <class T>
struct Signals {
  Hidden<T> hidden;
  T* b;                      // [rows, fp] W2ᵀ e
  T* d[kMostMatrices] = {};  // [rows, op]; the last one is e

  Signals(Arena<T>& arena, const Sizes& sz) : hidden(arena, sz, sz.rows) {
    b = sz.deep() ? arena.take(sz.rows * sz.fp) : nullptr;
    for (int l = 0; l < sz.matrices; ++l) d[l] = arena.take(sz.rows * sz.matrix[l].op);
  }
};

// The inputs of matrix l: phi(k) or phi(q), but the hidden layer of them for the last one of a deep
// memory.
template <class T>
ATLAS_INLINE const T* inputs_of(const Sizes& sz, int l, const T* lifted, const Hidden<T>& hidden) {
  return l < sz.first_layer() ? lifted : hidden.h;
}

// e_i = -v_i, and k_i under l2 with the residual: what is left is the memory's own answer.
template <class T>
inline void begin_errors(T* e, const Chunk<T>& c, const Sizes& sz, const OmegaOptions& options) {
  for (int64_t i = 0; i < c.rows() * sz.vp; ++i) e[i] = -c.values[i];
  if (options.l2 && options.residual)
    for (int64_t i = 0; i < c.rows(); ++i) axpy(e + i * sz.vp, T(1), c.k + i * sz.kp, sz.value);
}

// e_i = M_ref(x_i) - v_i (l2) or -v_i (dot), and deeper d by the chain rule, of a deep memory whose
// z1 (and z3) are at hand. `rows_of_last` is scratch for [V, fp].
template <class T>
inline void deep_signals(const Signals<T>& signals, const Chunk<T>& c, const Sizes& sz,
                         const OmegaOptions& options, const T* reference, T* rows_of_last) {
  const int64_t rows = c.rows();
  const Hidden<T>& hidden = signals.hidden;
  const MatrixSizes& last = sz.matrix[sz.last()];
  T* e = signals.d[sz.last()];
  activate_hidden(hidden, sz, options.activation, 0, rows, true);
  begin_errors(e, c, sz, options);
  if (options.l2)
    gemm(rows, sz.value, last.in, plain(hidden.h, last.ip), reference + last.at, sz.vp, e, sz.vp,
         T(1), T(1));
  transpose(rows_of_last, sz.fp, reference + last.at, sz.vp, sz.hidden, sz.value);
  gemm(rows, sz.hidden, sz.value, plain(e, sz.vp), rows_of_last, sz.fp, signals.b, sz.fp);
  activate_hidden_backward(signals.d, signals.b, hidden, sz, 0, rows);
}

// The error signals of any memory with weights, at M_ref.
template <class T>
inline void memory_signals(const Signals<T>& signals, const Chunk<T>& c, const Sizes& sz,
                           const OmegaOptions& options, const T* reference, T* rows_of_last) {
  const int64_t rows = c.rows();
  if (sz.deep()) {
    for (int l = 0; l < sz.first_layer(); ++l)
      gemm(rows, sz.hidden, sz.features, plain(c.x, sz.dp), reference + sz.matrix[l].at, sz.fp,
           signals.hidden.z[l], sz.fp);
    return deep_signals(signals, c, sz, options, reference, rows_of_last);
  }
  begin_errors(signals.d[0], c, sz, options);
  if (options.l2)
    gemm(rows, sz.value, sz.features, plain(c.x, sz.dp), reference, sz.vp, signals.d[0], sz.vp,
         T(1), T(1));
}

// Adjoint of the elementwise part of memory_signals: takes grad_d of the first layer, gives grad_b
// and what reaches z (without the way through h).
template <class T>
inline void signals_backward(T* grad_b, T* const* grad_z, T* const* grad_d, const Signals<T>& s,
                             const Sizes& sz, Activation activation, int64_t rows) {
  const Hidden<T>& hidden = s.hidden;
  each_activated(activation, hidden.z[0], rows * sz.fp, [&](int64_t i, Activated<T> act) {
    const Vec<T> d1 = load(grad_d[0] + i), b = load(s.b + i);
    if (!sz.gated()) {
      store(grad_b + i, d1 * act.slope);
      store(grad_z[0] + i, d1 * b * act.curve);
      return;
    }
    const Vec<T> z3 = load(hidden.z[1] + i), d3 = load(grad_d[1] + i);
    store(grad_b + i, d1 * z3 * act.slope + d3 * act.value);
    store(grad_z[0] + i, b * (d1 * z3 * act.curve + d3 * act.slope));
    store(grad_z[1] + i, d1 * b * act.slope);
  });
}

// Scratch of memory_signals_backward.
template <class T>
struct SignalsBackwardWork {
  T* b;     // [rows, fp]
  T* z[2];  // [rows, fp]
  T* rows;  // one matrix, as [out, ip]

  SignalsBackwardWork(Arena<T>& arena, const Sizes& sz) {
    int64_t most = 0;
    for (int l = 0; l < sz.matrices; ++l) most = larger(most, sz.matrix[l].out * sz.matrix[l].ip);
    rows = arena.take(most);
    if (!sz.deep()) return;
    b = arena.take(sz.rows * sz.fp);
    for (int l = 0; l < sz.first_layer(); ++l) z[l] = arena.take(sz.rows * sz.fp);
  }
};

// What the adjoint of a chunk's signals reads and adds to.
template <class T>
struct SignalGrads {
  T* d[kMostMatrices];  // [rows, op] of d; the last one, of e, is added to
  T* h;                 // [rows, fp] of the hidden layer, deep memories only; added to
  T* x;                 // [rows, dp] of phi(k); added to
  T* reference;         // a state; added to
  bool wants_x;         // else x is left alone
};

// Adjoint of memory_signals (section 5, eq. 31, and section 7).
template <class T>
inline void memory_signals_backward(const SignalGrads<T>& g, const Signals<T>& signals,
                                    const Chunk<T>& c, const Sizes& sz, const OmegaOptions& options,
                                    const T* reference, const SignalsBackwardWork<T>& work) {
  const int64_t rows = c.rows();
  const MatrixSizes& last = sz.matrix[sz.last()];
  const T* e = signals.d[sz.last()];
  T* grad_e = g.d[sz.last()];
  T* grad_last = g.reference + last.at;
  if (sz.deep()) {
    signals_backward(work.b, work.z, g.d, signals, sz, options.activation, rows);
    gemm(rows, sz.value, sz.hidden, plain(work.b, sz.fp), reference + last.at, sz.vp, grad_e, sz.vp,
         T(1), T(1));
    gemm(sz.hidden, sz.value, rows, transposed(work.b, sz.fp), e, sz.vp, grad_last, sz.vp, T(1),
         T(1));
  }
  if (options.l2) {
    gemm(last.in, sz.value, rows,
         transposed(inputs_of(sz, sz.last(), c.x, signals.hidden), last.ip), grad_e, sz.vp,
         grad_last, sz.vp, T(1), T(1));
    if (sz.deep() || g.wants_x) {
      transpose(work.rows, last.ip, reference + last.at, sz.vp, last.in, sz.value);
      gemm(rows, last.in, sz.value, plain(grad_e, sz.vp), work.rows, last.ip, sz.deep() ? g.h : g.x,
           last.ip, T(1), T(1));
    }
  }
  if (!sz.deep()) return;
  const Hidden<T>& hidden = signals.hidden;
  for (int64_t i = 0; i < rows * sz.fp; i += kWidth<T>) {  // through h
    const Vec<T> grad = load(g.h + i), slope = load(hidden.slope + i);
    if (sz.gated()) {
      store(work.z[0] + i, load(work.z[0] + i) + grad * load(hidden.z[1] + i) * slope);
      store(work.z[1] + i, load(work.z[1] + i) + grad * load(hidden.a + i));
    } else {
      store(work.z[0] + i, load(work.z[0] + i) + grad * slope);
    }
  }
  for (int l = 0; l < sz.first_layer(); ++l) {
    const MatrixSizes& m = sz.matrix[l];
    gemm(m.in, m.out, rows, transposed(c.x, sz.dp), work.z[l], m.op, g.reference + m.at, m.op, T(1),
         T(1));
    if (!g.wants_x) continue;
    transpose(work.rows, m.ip, reference + m.at, m.op, m.in, m.out);
    gemm(rows, m.in, m.out, plain(work.z[l], m.op), work.rows, m.ip, g.x, m.ip, T(1), T(1));
  }
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
