// One chunk of the exponential Omega rule, forwards (docs/math/exp_omega_rule.md, sections 2 to 4).
// Included by kernel bodies after isa_begin.h.
#pragma once
#include "kernels/cpu/exp_omega_rows.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// One (sequence, head) on its way through the chunks.
template <class T>
struct ExpTask {
  Chunk<T> chunk;
  Signals<T> signals;
  DualWork<T> dual;
  Near<T> near;
  Keys<T> keys;
  T* rows;                            // [most_rows, ld] rows and momenta of all tokens before
  T* own_reference;                   // [most_rows, wide], of a call that begins in mid-chunk
  T *weights, *momentum, *reference;  // states of the matrices; momentum of the last one alone
  const T* reference_rows;            // what M_ref is at this chunk: own_reference or rows
  const T* reference_weights;
  int64_t reference_ld;
  T* acc;                 // [rows, ld]
  T* reads;               // [tokens, wide] the read's kernel sums, divided
  T *start, *most, *sum;  // [tokens] maximum in the window, of all keys; sum, then its log
  T* kernel;              // [rows, kKeyBlock]
  T* y;                   // [tokens, vp]
  T* line;

  ExpTask(Arena<T>& arena, const ExpSizes& x, const ExpOmegaOptions& options, bool own)
      : chunk(arena, x.sz, 0),
        signals(arena, x.sz),
        dual(arena, x.sz, options.omega),
        near(arena, x.sz),
        keys(take_keys(arena, x, options.scale)) {
    const Sizes& sz = x.sz;
    rows = arena.take(x.most_rows * x.ld);
    own_reference = own ? arena.take(x.most_rows * x.wide) : nullptr;
    weights = arena.take(sz.state);
    momentum = arena.take(sz.state);
    reference = arena.take(sz.state);
    acc = arena.take(sz.rows * x.ld);
    reads = arena.take(sz.chunk * x.wide);
    start = arena.take(sz.chunk);
    most = arena.take(sz.chunk);
    sum = arena.take(sz.chunk);
    kernel = arena.take(sz.rows * kKeyBlock);
    y = arena.take(sz.chunk * sz.vp);
    line = arena.take(line_elements(sz));
  }

  Running<T> running(bool normalized) const {
    Running<T> found;
    if (normalized) found = {most, sum};
    return found;
  }
};

// Matrices of a deep memory and, for W2, its momentum; where absent, zero.
template <class T>
inline void load_matrices(T* weights, const Strided* src, const Sizes& sz, int64_t n, int64_t head,
                          T* line) {
  for (int l = 0; sz.deep() && l < sz.matrices; ++l)
    if (src[l])
      load_matrix(weights + sz.matrix[l].at, src[l], sz.matrix[l], n, head, line);
    else
      fill_zero(weights + sz.matrix[l].at, sz.matrix[l].in * sz.matrix[l].op);
}

template <class T>
inline void begin_matrices(ExpTask<T>& task, const ExpOmegaInputs& in, const ExpSizes& x, int64_t n,
                           int64_t head) {
  load_matrices(task.weights, in.omega.weights, x.sz, n, head, task.line);
  load_matrices(task.momentum, in.omega.momentum, x.sz, n, head, task.line);
  task.reference_weights = task.weights;
  if (task.own_reference == nullptr) return;
  load_matrices(task.reference, in.omega.chunk_weights, x.sz, n, head, task.line);
  task.reference_weights = task.reference;
}

template <class T>
inline void begin_sequence(ExpTask<T>& task, const ExpOmegaInputs& in, const ExpSizes& x, int64_t n,
                           int64_t head) {
  const OmegaSequence& sequence = in.omega.sequences[n];
  begin_matrices(task, in, x, n, head);
  load_keys(task.keys, in, x, n, head);
  load_rows(task.rows, in.coefficients, in.momentum, x, n, head, 0, sequence.position);
  task.reference_rows = task.rows;
  task.reference_ld = x.ld;
  if (task.own_reference == nullptr) return;
  load_sets(task.own_reference, x.wide, in.reference, x, n, head, 0, sequence.position);
  task.reference_rows = task.own_reference;
  task.reference_ld = x.wide;
}

// rows [count, rp] += columns of acc
template <class T>
ATLAS_INLINE void add_part(T* rows, const T* acc, int64_t ld, int64_t rp, int64_t count) {
  for (int64_t i = 0; i < count; ++i) axpy(rows + i * rp, T(1), acc + i * ld, rp);
}

// The error signals at M_ref, eqs. (4) to (6), from task.acc [rows, wide], the kernel sums of (13);
// these are not read where nothing depends on them.
template <class T>
inline void finish_signals(ExpTask<T>& task, const ExpSizes& x, const ExpOmegaOptions& options) {
  const Chunk<T>& c = task.chunk;
  const Sizes& sz = x.sz;
  if (!sz.deep()) {
    begin_errors(task.signals.d[0], c, sz, options.omega);
    if (options.omega.l2) add_part(task.signals.d[0], task.acc, x.wide, x.rp, c.rows());
    return;
  }
  for (int l = 0; l < x.sets; ++l) {
    T* z = task.signals.hidden.z[l];
    gemm(c.rows(), sz.hidden, sz.key, plain(c.k, sz.kp), task.reference_weights + sz.matrix[l].at,
         sz.fp, z, sz.fp);
    add_part(z, task.acc + l * x.rp, x.wide, x.rp, c.rows());
  }
  deep_signals(task.signals, c, sz, options.omega, task.reference_weights, task.line);
}

// The read's kernel sums, eqs. (11), (14): what the window's keys and rows [c.rows(), .] give. The
// sums over the keys before follow, into task.acc with the same `running`, then finish_read.
template <class T>
inline void begin_read(ExpTask<T>& task, const ExpSizes& x, const T* keys, const T* rows,
                       const Running<T>& running) {
  const Chunk<T>& c = task.chunk;
  near_kernel(task.near, c, x.sz, task.keys, keys, running, static_cast<const T*>(nullptr));
  for (int64_t t = 0; running.most != nullptr && t < c.tokens; ++t) task.start[t] = task.most[t];
  gemm(c.tokens, x.ld, c.overhang, plain(task.near.kernel, x.sz.rp), rows, x.ld, task.acc, x.ld);
}

// The divided sums into task.reads and the first layer, the log of what divides into task.sum.
template <class T>
inline void finish_read(ExpTask<T>& task, const ExpSizes& x, bool normalized) {
  const Chunk<T>& c = task.chunk;
  const Sizes& sz = x.sz;
  for (int set = 0; set < x.sets; ++set) {
    T* z = sz.deep() ? task.dual.queries.z[set] : task.y;
    fill_zero(z, c.tokens * x.rp);
    causal_read(z, c, sz, task.near.coefficients, task.signals.d[set], x.rp, x.row);
    for (int64_t t = 0; t < c.tokens; ++t) {
      T* row = z + t * x.rp;
      const T* acc = task.acc + t * x.ld + set * x.rp;
      T near = 1, far = 1;
      if (normalized) {
        far = T(1) / task.sum[t];
        near = kernel_exp<T>(splat(task.start[t] - task.most[t]))[0] * far;
      }
      scale_add(row, near, c.m[t] * far, acc, x.rp);
      if (x.momentum) axpy(row, -c.s[t] * far, acc + x.wide, x.rp);
      __builtin_memcpy(task.reads + t * x.wide + set * x.rp, row, x.rp * sizeof(T));
    }
  }
  for (int64_t t = 0; normalized && t < c.tokens; ++t)
    task.sum[t] = task.most[t] + static_cast<T>(__builtin_log(static_cast<double>(task.sum[t])));
}

// z [tokens, fp] += m_t W0 q_t; `work` is as large as z.
template <class T>
inline void add_raw_maps(T* const* z, const T* weights, const Chunk<T>& c, const Sizes& sz,
                         T* work) {
  for (int l = 0; l < sz.first_layer(); ++l) {
    gemm(c.tokens, sz.hidden, sz.key, plain(c.q, sz.kp), weights + sz.matrix[l].at, sz.fp, work,
         sz.fp);
    for (int64_t t = 0; t < c.tokens; ++t) axpy(z[l] + t * sz.fp, c.m[t], work + t * sz.fp, sz.fp);
  }
}

// rho of one row.
template <class T>
ATLAS_INLINE T root_mean_square(const T* y, int64_t n) {
  const double mean = static_cast<double>(dot(y, y, n)) / static_cast<double>(n);
  return static_cast<T>(__builtin_sqrt(mean + 1e-6));
}

// Eq. (12) at the chunk's end: (b, S) -> (m b - s S, p S).
template <class T>
ATLAS_INLINE void move_rows(T* rows, const ExpSizes& x, int64_t count, T m, T s, T p) {
  if (!x.momentum && m == T(1)) return;
  for (int64_t j = 0; j < count; ++j) {
    T* b = rows + j * x.ld;
    if (!x.momentum) {
      for (int64_t i = 0; i < x.wide; ++i) b[i] *= m;
      continue;
    }
    T* momentum = b + x.wide;
    for (int64_t i = 0; i < x.wide; ++i) {
      b[i] = m * b[i] - s * momentum[i];
      momentum[i] *= p;
    }
  }
}

template <class T>
ATLAS_INLINE void move_rows(T* rows, const Chunk<T>& c, const ExpSizes& x, int64_t count) {
  move_rows(rows, x, count, c.m[c.tokens - 1], c.s[c.tokens - 1], c.p[c.tokens - 1]);
}

// Then what the window's tokens write into its rows [c.rows(), ld].
template <class T>
inline void push_rows(T* rows, const Chunk<T>& c, const ExpSizes& x, const Signals<T>& signals) {
  const T *cf = c.cf + (c.tokens - 1) * x.sz.rp, *a = c.a + (c.tokens - 1) * x.sz.rp;
  for (int64_t i = 0; i < c.rows(); ++i)
    for (int set = 0; set < x.sets; ++set) {
      T* b = rows + i * x.ld + set * x.rp;
      const T* d = signals.d[set] + i * x.rp;
      axpy(b, -cf[i], d, x.row);
      if (x.momentum) axpy(b + x.wide, a[i], d, x.row);
    }
}

// From the read's kernel sums to task.y, the finished output; the matrices move on if `advance`.
template <class T>
inline void finish_chunk(ExpTask<T>& task, const ExpOmegaOptions& options, const ExpSizes& x,
                         bool advance) {
  const Sizes& sz = x.sz;
  const Chunk<T>& c = task.chunk;
  T* const momentum = x.momentum ? task.momentum : nullptr;
  if (sz.deep()) {
    const MatrixSizes& last = sz.matrix[sz.last()];
    const Hidden<T>& queries = task.dual.queries;
    add_raw_maps(queries.z, task.weights, c, sz, task.dual.reads);
    activate_hidden(queries, sz, options.omega.activation, 0, c.tokens, false);
    inside_forward(task.dual.inside, c, sz, PolyMap<T>{}, queries.h, task.signals.hidden.h, sz.fp,
                   sz.hidden);
    dual_read(task.y, c, sz, last, queries.h, task.weights, momentum, task.dual.inside.coefficients,
              task.signals.d[sz.last()], task.dual.reads);
    if (advance) {
      dual_advance(task.weights, momentum, c, sz, last, task.signals.hidden.h,
                   task.signals.d[sz.last()], task.dual.writes, task.dual.writes2);
      for (int64_t i = 0; i < last.at; ++i) task.weights[i] *= c.m[c.tokens - 1];
    }
  }
  for (int64_t t = 0; t < c.tokens; ++t) {
    T* y = task.y + t * sz.vp;
    if (options.omega.residual) axpy(y, T(1), c.q + t * sz.kp, sz.value);
    if (options.normalize != Normalize::rms) continue;
    const T factor = T(1) / root_mean_square(y, sz.value);
    for (int64_t i = 0; i < sz.value; ++i) y[i] *= factor;
  }
}

// Computes the chunk of `tokens` tokens from `first`: the output into task.y, the state after it
// into task.rows, .weights and .momentum if `advance`.
template <class T>
inline void compute_chunk(ExpTask<T>& task, const ExpOmegaOptions& options,
                          const ExpOmegaInputs& in, const ExpSizes& x, int64_t n, int64_t head,
                          int64_t first, int64_t tokens, bool advance) {
  const Sizes& sz = x.sz;
  const Chunk<T>& c = task.chunk;
  load_chunk(task.chunk, sz, options.omega, in.omega, PolyMap<T>{}, n, head, first, tokens);
  scan_chunk(c, sz, x.momentum);
  const int64_t far = c.position - c.overhang;
  if (options.reads_window()) {
    fill_zero(task.acc, c.rows() * x.wide);
    kernel_sums(task.acc, x.wide, x.wide, c.k, c.rows(), task.keys, task.reference_rows,
                task.reference_ld, c.position, {}, task.kernel);
  }
  finish_signals(task, x, options);
  const bool normalized = options.normalize == Normalize::softmax;
  const Running<T> running = task.running(normalized);
  begin_read(task, x, task.keys.rows + far * sz.kp, task.rows + far * x.ld, running);
  kernel_sums(task.acc, x.ld, x.ld, c.q, c.tokens, task.keys, task.rows, x.ld, far, running,
              task.kernel);
  finish_read(task, x, normalized);
  finish_chunk(task, options, x, advance);
  if (!advance) return;
  move_rows(task.rows, c, x, c.position);
  fill_zero(task.rows + c.position * x.ld, c.tokens * x.ld);
  push_rows(task.rows + far * x.ld, c, x, task.signals);
  task.reference_rows = task.rows;
  task.reference_ld = x.ld;
  task.reference_weights = task.weights;
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
