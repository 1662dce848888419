// Adjoint of one chunk of the exponential Omega rule (docs/math/exp_omega_rule.md, section 5).
// Included by kernel bodies after isa_begin.h. Names are those of the documentation with grad_ for
// adjoints.
#pragma once
#include "kernels/cpu/exp_omega_chunk.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

template <class T>
struct ExpBackwardTask {
  Chunk<T> chunk;
  Signals<T> signals;
  ChunkGrads<T> grads;
  DualBackwardWork<T> dual;
  SignalsBackwardWork<T> inner;
  Near<T> near;
  Keys<T> keys;
  T *weights, *momentum, *reference, *grad_reference;  // states
  T* raw_maps;                                         // a state: W0 (and W0g) at the call's start
  T *rows, *grad_rows;                                 // [most_rows, ld]
  T *own_reference, *grad_own_reference;               // [most_rows, wide]; null without
  T* grad_keys;                                        // [most_rows, kp]
  T* grad_values;                                      // [most_tokens, vp]
  T *grad_k_tail, *grad_v_tail;                        // [W-1, .]
  T* moves;                                            // [most_chunks, 3] m, s, p of each chunk
  T *shift, *centre;                                   // [tokens]
  T *reads, *grad_sums, *scaled;                       // [tokens, wide], [rows, wide], [tokens, ld]
  T *kernel, *by, *bs;                                 // [rows, kKeyBlock]
  T* transposed;                                       // [wide, kKeyBlock or rp]
  T *near_by, *near_bs, *near_d, *near_part;           // [tokens, rp]
  T* y;                                                // [tokens, vp]
  T* line;

  ExpBackwardTask(Arena<T>& arena, const ExpSizes& x, const ExpOmegaOptions& options, bool own)
      : chunk(arena, x.sz, 0),
        signals(arena, x.sz),
        grads(arena, x.sz, x.momentum),
        dual(arena, x.sz, options.omega),
        inner(arena, x.sz),
        near(arena, x.sz),
        keys(take_keys(arena, x, options.scale)) {
    const Sizes& sz = x.sz;
    weights = arena.take(sz.state);
    momentum = arena.take(sz.state);
    reference = arena.take(sz.state);
    grad_reference = arena.take(sz.state);
    raw_maps = arena.take(sz.state);
    rows = arena.take(x.most_rows * x.ld);
    grad_rows = arena.take(x.most_rows * x.ld);
    own_reference = own ? arena.take(x.most_rows * x.wide) : nullptr;
    grad_own_reference = own ? arena.take(x.most_rows * x.wide) : nullptr;
    grad_keys = arena.take(x.most_rows * sz.kp);
    grad_values = arena.take(x.most_tokens * sz.vp);
    grad_k_tail = arena.take((sz.window - 1) * sz.kp);
    grad_v_tail = arena.take((sz.window - 1) * sz.vp);
    moves = arena.take(x.most_chunks * 3);
    shift = arena.take(sz.chunk);
    centre = arena.take(sz.chunk);
    reads = arena.take(sz.chunk * x.wide);
    grad_sums = arena.take(sz.rows * x.wide);
    scaled = arena.take(sz.chunk * x.ld);
    kernel = arena.take(sz.rows * kKeyBlock);
    by = arena.take(sz.rows * kKeyBlock);
    bs = arena.take(sz.rows * kKeyBlock);
    transposed = arena.take(x.wide * larger(kKeyBlock, sz.rp));
    near_by = arena.take(sz.chunk * sz.rp);
    near_bs = arena.take(sz.chunk * sz.rp);
    near_d = arena.take(sz.chunk * sz.rp);
    near_part = arena.take(sz.chunk * sz.rp);
    y = arena.take(sz.chunk * sz.vp);
    line = arena.take(line_elements(sz));
  }
};

// dst [count, wide] = the sets' rows side by side.
template <class T>
inline void join_sets(T* dst, T* const* sets, const ExpSizes& x, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    for (int set = 0; set < x.sets; ++set)
      __builtin_memcpy(dst + i * x.wide + set * x.rp, sets[set] + i * x.rp, x.rp * sizeof(T));
}

// Adjoint of advance_rows: grad_rows goes from after the chunk to before it.
template <class T>
inline void advance_rows_backward(ExpBackwardTask<T>& task, const ExpSizes& x) {
  const Chunk<T>& c = task.chunk;
  const ChunkGrads<T>& g = task.grads;
  const int64_t last = c.tokens - 1, offset = last * x.sz.rp, far = c.position - c.overhang;
  const T m = c.m[last], s = c.s[last], p = c.p[last];
  for (int64_t i = 0; i < c.rows(); ++i)
    for (int set = 0; set < x.sets; ++set) {
      const T* grad_b = task.grad_rows + (far + i) * x.ld + set * x.rp;
      const T* d = task.signals.d[set] + i * x.rp;
      T* grad_d = g.d[set] + i * x.rp;
      g.gates.cf[offset + i] -= dot(grad_b, d, x.row);
      axpy(grad_d, -c.cf[offset + i], grad_b, x.row);
      if (!x.momentum) continue;
      g.gates.a[offset + i] += dot(grad_b + x.wide, d, x.row);
      axpy(grad_d, c.a[offset + i], grad_b + x.wide, x.row);
    }
  T grad_m = 0, grad_s = 0, grad_p = 0;
  for (int64_t j = 0; j < c.position; ++j) {
    T* grad_b = task.grad_rows + j * x.ld;
    const T* b = task.rows + j * x.ld;
    grad_m += dot(grad_b, b, x.wide);
    if (!x.momentum) {
      for (int64_t i = 0; i < x.wide; ++i) grad_b[i] *= m;
      continue;
    }
    T* grad_momentum = grad_b + x.wide;
    grad_s -= dot(grad_b, b + x.wide, x.wide);
    grad_p += dot(grad_momentum, b + x.wide, x.wide);
    for (int64_t i = 0; i < x.wide; ++i) {
      grad_momentum[i] = p * grad_momentum[i] - s * grad_b[i];
      grad_b[i] *= m;
    }
  }
  g.gates.m[last] += grad_m;
  g.gates.s[last] += grad_s;
  g.gates.p[last] += grad_p;
}

// The part of the read's adjoint that the window's keys take, eqs. (15) to (17).
template <class T>
inline void near_backward(ExpBackwardTask<T>& task, const ExpSizes& x, T* const* grad_z,
                          const KernelGrads<T>& grads) {
  const Chunk<T>& c = task.chunk;
  const Sizes& sz = x.sz;
  const ChunkGrads<T>& g = task.grads;
  const int64_t far = c.position - c.overhang;
  const T* held = task.rows + far * x.ld;  // of the overhang; the chunk's own tokens hold none yet
  for (int set = 0; set < x.sets; ++set) {
    transpose(task.dual.dt, sz.rp, task.signals.d[set], x.rp, c.rows(), x.row);
    T* part = set == 0 ? task.near_d : task.near_part;
    causal_scores(part, c, sz, grad_z[set], x.rp, x.row, task.dual.dt);
    for (int64_t t = 0; set > 0 && t < c.tokens; ++t)
      axpy(task.near_d + t * sz.rp, T(1), part + t * sz.rp, causal_limit(c, t));
    causal_write(g.d[set], c, sz, task.near.coefficients, grad_z[set], x.rp, x.row);
  }
  for (int part = 0; part < (x.momentum ? 2 : 1) && c.overhang > 0; ++part) {
    transpose(task.transposed, sz.rp, held + part * x.wide, x.ld, c.overhang, x.wide);
    gemm(c.tokens, c.overhang, x.wide, plain(task.grad_sums, x.wide), task.transposed, sz.rp,
         part == 0 ? task.near_by : task.near_bs, sz.rp);
  }
  gemm(c.overhang, x.ld, c.tokens, transposed(task.near.kernel, sz.rp), task.scaled, x.ld,
       task.grad_rows + far * x.ld, x.ld, T(1), T(1));
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int64_t limit = causal_limit(c, t), offset = t * sz.rp;
    T *by = task.near_by + offset, *bs = task.near_bs + offset;
    const T *kernel = task.near.kernel + offset, *d = task.near_d + offset, *cf = c.cf + offset;
    kernel_slopes(grads, t, kernel, by, x.momentum ? bs : nullptr, c.overhang, task.keys.scale);
    const T centre = grads.centre == nullptr ? T(0) : grads.centre[t];
    for (int64_t i = c.overhang; i < limit; ++i) by[i] = -task.keys.scale * kernel[i] * centre;
    for (int64_t i = 0; i < limit; ++i) {
      g.gates.cf[offset + i] -= kernel[i] * d[i];
      by[i] -= task.keys.scale * kernel[i] * cf[i] * d[i];
    }
  }
  if (g.wants_u) causal_read(g.u, c, sz, task.near_by, task.keys.rows + far * sz.kp, sz.kp, sz.key);
  if (g.wants_x)
    causal_write(task.grad_keys + far * sz.kp, c, sz, task.near_by, c.q, sz.kp, sz.key);
}

// Adjoint of read_rows: grad_z [tokens, rp] of each set's divided sums.
template <class T>
inline void read_rows_backward(ExpBackwardTask<T>& task, const ExpSizes& x, T* const* grad_z,
                               bool normalized) {
  const Chunk<T>& c = task.chunk;
  const ChunkGrads<T>& g = task.grads;
  join_sets(task.grad_sums, grad_z, x, c.tokens);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const T* grad = task.grad_sums + t * x.wide;
    T* scaled = task.scaled + t * x.ld;
    for (int64_t i = 0; i < x.wide; ++i) scaled[i] = c.m[t] * grad[i];
    for (int64_t i = 0; x.momentum && i < x.wide; ++i) scaled[x.wide + i] = -c.s[t] * grad[i];
    if (normalized) task.centre[t] = dot(grad, task.reads + t * x.wide, x.wide);
  }
  KernelGrads<T> grads{};
  grads.queries = c.q;
  grads.n = c.tokens;
  grads.shift = normalized ? task.shift : nullptr;
  grads.centre = normalized ? task.centre : nullptr;
  grads.grad = task.grad_sums;
  grads.scaled = task.scaled;
  grads.wide = x.wide;
  grads.scaled_width = x.ld;
  grads.m = c.m;
  grads.grad_m = g.gates.m;
  if (x.momentum) {
    grads.s = c.s;
    grads.grad_s = g.gates.s;
  }
  grads.grad_queries = g.wants_u ? g.u : nullptr;
  grads.kernel = task.kernel;
  grads.by = task.by;
  grads.bs = task.bs;
  grads.rows = task.transposed;
  near_backward(task, x, grad_z, grads);
  kernel_sums_backward(grads, task.keys, task.rows, x.ld, c.position - c.overhang, task.grad_rows,
                       x.ld, g.wants_x ? task.grad_keys : nullptr);
}

// Adjoint of z(k_i), eq. (13): the reference rows begin at `rows`, their adjoints at `grad_rows`.
template <class T>
inline void window_sums_backward(ExpBackwardTask<T>& task, const ExpSizes& x, T* const* grad_z,
                                 const T* rows, T* grad_rows, int64_t ld) {
  const Chunk<T>& c = task.chunk;
  const ChunkGrads<T>& g = task.grads;
  join_sets(task.grad_sums, grad_z, x, c.rows());
  KernelGrads<T> grads{};
  grads.queries = c.k;
  grads.n = c.rows();
  grads.grad = grads.scaled = task.grad_sums;
  grads.wide = grads.scaled_width = x.wide;
  grads.grad_queries = g.wants_x ? g.x : nullptr;
  grads.kernel = task.kernel;
  grads.by = task.by;
  grads.rows = task.transposed;
  kernel_sums_backward(grads, task.keys, rows, ld, c.position, grad_rows, ld,
                       g.wants_x ? task.grad_keys : nullptr);
}

// W2 and the activation of the queries, then the raw-input maps of the read: from g.y to g.z, g.h
// and the adjoint of e. What follows from g.u is added to.
template <class T>
inline void deep_read_backward(ExpBackwardTask<T>& task, const ExpSizes& x) {
  const Sizes& sz = x.sz;
  const Chunk<T>& c = task.chunk;
  const ChunkGrads<T>& g = task.grads;
  const int last = sz.last();
  const T *queries = task.dual.queries.h, *rows = task.signals.hidden.h;
  inside_backward(g, g.d[last], task.dual.scores, c, sz, sz.matrix[last], task.dual.inner, g.y,
                  task.signals.d[last], task.dual, false, true);
  fill_zero(g.hidden, c.tokens * sz.fp);
  dual_backward_state(g, g.d[last], g.h, g.hidden, c, sz, sz.matrix[last], task.weights,
                      x.momentum ? task.momentum : nullptr, rows, queries, task.signals.d[last],
                      g.y, task.dual, true);
  causal_read(g.hidden, c, sz, task.dual.scores, rows, sz.fp, sz.hidden);
  causal_write(g.h, c, sz, task.dual.scores, queries, sz.fp, sz.hidden);
  activate_hidden_backward(g.z, g.hidden, task.dual.queries, sz, 0, c.tokens);
  for (int l = 0; l < x.sets; ++l) {
    const MatrixSizes& m = sz.matrix[l];
    const int64_t size = m.in * m.op;
    T* grad_w = g.weights + m.at;
    g.gates.m[c.tokens - 1] += dot(grad_w, task.weights + m.at, size);
    for (int64_t i = 0; i < size; ++i) grad_w[i] *= c.m[c.tokens - 1];
    transpose(task.dual.rows, m.ip, task.weights + m.at, m.op, m.in, m.out);
    dual_backward_read(g.u, g.gates.m, g.weights, c, m, g.z[l], c.q, c.m, T(1), task.dual.rows,
                       task.dual.reads, task.dual.by_state);
  }
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
