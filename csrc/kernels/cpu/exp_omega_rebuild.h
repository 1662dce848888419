// What the backward pass of the exponential Omega rule makes anew at each chunk, from what the
// forward saved (docs/math/exp_omega_rule.md, eq. 18); included by exp_omega_rule.inc.h.
#pragma once
#include "kernels/cpu/exp_omega_chunk_backward.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

// Where the chunks and windows of one sequence lie, by position.
struct Walk {
  int64_t position, chunk, window;

  int64_t start(int64_t number) const {
    return number == 0 ? position : (position / chunk + number) * chunk;
  }
  int64_t window_start(int64_t number) const { return larger(0, start(number) - (window - 1)); }
};

// Rows at the start of chunk `number`, eq. (18): every row from where a window last held it.
template <class T>
void rebuild_rows(const ExpOmegaBackward& args, const ExpSizes& x, ExpBackwardTask<T>& task,
                  const Walk& walk, int64_t n, int64_t head, int64_t number) {
  const ExpOmegaInputs& in = args.in;
  const int64_t heads = args.options.omega.heads, width = x.parts() * x.row;
  const int64_t first_index = in.omega.sequences[n].first_checkpoint;
  if (number == 0)
    return load_rows(task.rows, in.coefficients, in.momentum, x, n, head, 0, walk.position);
  T m = 1, s = 0, p = 1;  // of the chunks from chunk + 1 up to this one
  for (int64_t chunk = number - 1; chunk >= 0; --chunk) {
    const int64_t from = walk.window_start(chunk);
    const int64_t to = chunk + 1 == number ? walk.start(number) : walk.window_start(chunk + 1);
    T* rows = task.rows + from * x.ld;
    unpack_rows(rows, x.ld,
                static_cast<const T*>(args.saved.rows) +
                    ((first_index + chunk) * heads + head) * args.saved.window_rows * width,
                x.parts(), x, to - from);
    if (chunk + 1 < number) move_rows(rows, x, to - from, m, s, p);
    const T* move = task.moves + chunk * 3;
    s = m * move[1] + s * move[2];
    m *= move[0];
    p *= move[2];
  }
  const int64_t before = walk.window_start(0);
  load_rows(task.rows, in.coefficients, in.momentum, x, n, head, 0, before);
  move_rows(task.rows, x, before, m, s, p);
}

template <class T>
void unpack_matrix(T* matrix, const void* src, const MatrixSizes& m, int64_t index) {
  const T* in = static_cast<const T*>(src) + index * m.in * m.out;
  for (int64_t i = 0; i < m.in; ++i) {
    __builtin_memcpy(matrix + i * m.op, in + i * m.out, m.out * sizeof(T));
    fill_zero(matrix + i * m.op + m.out, m.op - m.out);
  }
}

// The matrices at the start of chunk `number`.
template <class T>
void rebuild_matrices(const ExpOmegaBackward& args, const ExpSizes& x, ExpBackwardTask<T>& task,
                      int64_t index, int64_t number) {
  if (!x.sz.deep()) return;
  const MatrixSizes& last = x.sz.matrix[x.sz.last()];
  T decay = 1;
  for (int64_t chunk = 0; chunk < number; ++chunk) decay *= task.moves[chunk * 3];
  for (int64_t i = 0; i < last.at; ++i) task.weights[i] = decay * task.raw_maps[i];
  unpack_matrix(task.weights + last.at, args.saved.weights, last, index);
  if (x.momentum) unpack_matrix(task.momentum + last.at, args.saved.momentum, last, index);
}

// m, s, p of every chunk's end, as scan_chunk finds them; returns the number of chunks.
template <class T>
int64_t scan_moves(const ExpOmegaBackward& args, const ExpSizes& x, ExpBackwardTask<T>& task,
                   int64_t n, int64_t head) {
  const OmegaInputs& in = args.in.omega;
  const OmegaSequence& sequence = in.sequences[n];
  const Chunk<T>& c = task.chunk;
  int64_t number = 0;
  for (int64_t first = 0, tokens; first < sequence.end - sequence.begin; first += tokens) {
    tokens = chunk_tokens(sequence, first, args.options.omega.chunk_size);
    exponentials(c.alpha, in.log_alpha, sequence, first, head, tokens);
    exponentials(c.theta, in.log_theta, sequence, first, head, tokens);
    load_array(c.eta, in.eta.array, in.eta.at(sequence.batch, sequence.begin + first, head), tokens,
               in.eta.stride[1]);
    T p = 1, s = 0, m = 1;
    for (int64_t t = 0; t < tokens; ++t) {
      p = x.momentum ? p * c.theta[t] : T(0);
      s = c.alpha[t] * s + c.eta[t] * p;
      m = c.alpha[t] * m;
    }
    T* move = task.moves + 3 * number++;
    move[0] = m;
    move[1] = s;
    move[2] = p;
  }
  return number;
}

// z(k_i) and the reads from what the forward saved, and the window's error signals.
template <class T>
void load_saved(const ExpOmegaBackward& args, const ExpSizes& x, ExpBackwardTask<T>& task,
                const T* reference, int64_t index, int64_t row) {
  const ExpOmegaSaved& saved = args.saved;
  const Chunk<T>& c = task.chunk;
  const Sizes& sz = x.sz;
  const int64_t heads = args.options.omega.heads, width = x.sets * x.row;
  if (saved.signals == nullptr) {
    begin_errors(task.signals.d[0], c, sz, args.options.omega);
  } else {
    const T* src = static_cast<const T*>(saved.signals) + index * saved.window_rows * width;
    for (int64_t i = 0; i < c.rows(); ++i)
      for (int set = 0; set < x.sets; ++set) {
        T* z = (sz.deep() ? task.signals.hidden.z[set] : task.signals.d[0]) + i * x.rp;
        __builtin_memcpy(z, src + i * width + set * x.row, x.row * sizeof(T));
        fill_zero(z + x.row, x.rp - x.row);
      }
    if (sz.deep()) deep_signals(task.signals, c, sz, args.options.omega, reference, task.line);
  }
  for (int64_t t = 0; t < c.tokens; ++t) {
    if (saved.reads != nullptr)
      unpack_rows(task.reads + t * x.wide, x.wide,
                  static_cast<const T*>(saved.reads) + (row + t * heads) * width, x.sets, x, 1);
    if (saved.normalizers != nullptr)
      task.shift[t] = static_cast<const T*>(saved.normalizers)[row + t * heads];
  }
}

// The queries' hidden layer of a deep memory.
template <class T>
void rebuild_queries(const ExpOmegaBackward& args, const ExpSizes& x, ExpBackwardTask<T>& task) {
  const Chunk<T>& c = task.chunk;
  const Sizes& sz = x.sz;
  const Hidden<T>& queries = task.dual.queries;
  for (int set = 0; set < x.sets; ++set)
    for (int64_t t = 0; t < c.tokens; ++t)
      __builtin_memcpy(queries.z[set] + t * sz.fp, task.reads + t * x.wide + set * x.rp,
                       sz.fp * sizeof(T));
  add_raw_maps(queries.z, task.weights, c, sz, task.dual.reads);
  activate_hidden(queries, sz, args.options.omega.activation, 0, c.tokens, true);
  inside_forward(task.dual.inner, c, sz, PolyMap<T>{}, queries.h, task.signals.hidden.h, sz.fp,
                 sz.hidden);
}

}  // namespace
}  // namespace atlas::kernels::cpu::ATLAS_ISA
