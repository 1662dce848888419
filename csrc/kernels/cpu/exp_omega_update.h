// One token of the exponential Omega rule, in place: a chunk of one token that walks through the
// state's rows block by block, where they lie; included by exp_omega_rule.inc.h.
#pragma once
#include "kernels/cpu/exp_omega_chunk.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

// Rows [from, to) of one head, each part of `width` elements and `ld` behind the last.
template <class T>
void store_view(const StateView& view, const T* rows, int64_t ld, int64_t width, int64_t n,
                int64_t head, int64_t from, int64_t to) {
  for (int64_t j = from; j < to; ++j)
    store_array(view.array, n * view.stride[0] + j * view.stride[1] + head * view.stride[2],
                rows + j * ld, width);
}

template <class T>
void store_matrix_view(const StateView& view, const T* matrix, const MatrixSizes& m, int64_t n,
                       int64_t head, T* line) {
  transpose(line, m.ip, matrix, m.op, m.in, m.out);
  for (int64_t row = 0; row < m.out; ++row)
    store_array(view.array, n * view.stride[0] + head * view.stride[1] + row * view.stride[2],
                line + row * m.ip, m.in);
}

// The last W-1 tokens' keys or values; slots before the sequence's start stay as they are.
template <class T>
void store_tail_view(const StateView& view, const T* rows, int64_t ld, int64_t width,
                     const Chunk<T>& c, int64_t slots, int64_t n, int64_t head) {
  const int64_t kept = smaller(slots, c.rows());
  for (int64_t i = 0; i < kept; ++i)
    store_view(view, rows + (c.rows() - slots) * ld, ld, width, n, head, slots - kept + i,
               slots - kept + i + 1);
}

// Buffers of a token's update: those of a forward over one block of keys, and the window's.
template <class T>
struct ExpUpdateTask {
  ExpTask<T> base;  // its keys, rows and own_reference hold a block
  T* window_keys;   // [rows, kp]
  T* window_rows;   // [rows, ld]

  ExpUpdateTask(Arena<T>& arena, const ExpSizes& x, const ExpOmegaOptions& options)
      : base(arena, x, options, true) {
    window_keys = arena.take(x.sz.rows * x.sz.kp);
    window_rows = arena.take(x.sz.rows * x.ld);
  }
};

// Sizes with room for one block instead of all rows.
template <class T>
inline ExpSizes update_sizes(const ExpOmegaOptions& options, const ExpOmegaInputs& in) {
  ExpSizes x = exp_sizes<T>(options, in);
  x.most_rows = kKeyBlock;
  return x;
}

// The state's keys [first, first + count) into the task's block.
template <class T>
void load_key_block(const ExpTask<T>& task, const ExpOmegaInputs& in, const ExpSizes& x, int64_t n,
                    int64_t head, int64_t first, int64_t count) {
  for (int64_t j = 0; j < count; ++j)
    load_row(task.keys.rows + j * x.sz.kp, x.sz.kp, in.keys, n, first + j, head, x.sz.key);
  transpose_keys(task.keys, count);
}

// Rows [first, first + count) of the state, as they leave the token.
template <class T>
void store_rows(const ExpOmegaUpdate& args, const ExpSizes& x, const T* rows, int64_t n,
                int64_t head, int64_t first, int64_t count, bool closes) {
  for (int set = 0; set < x.sets; ++set)
    for (int64_t j = 0; j < count; ++j) {
      const T* row = rows + j * x.ld + set * x.rp;
      store_view(args.coefficients[set], row, 0, x.row, n, head, first + j, first + j + 1);
      if (x.momentum)
        store_view(args.momentum[set], row + x.wide, 0, x.row, n, head, first + j, first + j + 1);
      if (closes) store_view(args.reference[set], row, 0, x.row, n, head, first + j, first + j + 1);
    }
}

// Rows before the window: read by the query, and moved where anything moves them.
template <class T>
void update_far_rows(const ExpOmegaUpdate& args, const ExpSizes& x, const ExpTask<T>& task,
                     int64_t n, int64_t head, const Running<T>& running, bool closes) {
  const Chunk<T>& c = task.chunk;
  const int64_t far = c.position - c.overhang;
  const bool moves = x.momentum || c.m[0] != T(1);
  for (int64_t first = 0; first < far; first += kKeyBlock) {
    const int64_t block = smaller(kKeyBlock, far - first);
    load_key_block(task, args.in, x, n, head, first, block);
    load_rows(task.rows, args.in.coefficients, args.in.momentum, x, n, head, first, block);
    kernel_sums(task.acc, x.ld, x.ld, c.q, 1, task.keys, task.rows, x.ld, block, running,
                task.kernel);
    move_rows(task.rows, c, x, block);
    if (moves || closes) store_rows(args, x, task.rows, n, head, first, block, closes);
  }
}

// z(k_i) of the window at the reference rows, eq. (13).
template <class T>
void update_window_sums(const ExpOmegaUpdate& args, const ExpSizes& x, const ExpTask<T>& task,
                        int64_t n, int64_t head) {
  const Chunk<T>& c = task.chunk;
  fill_zero(task.acc, c.rows() * x.wide);
  for (int64_t first = 0; first < c.position; first += kKeyBlock) {
    const int64_t block = smaller(kKeyBlock, c.position - first);
    load_key_block(task, args.in, x, n, head, first, block);
    load_sets(task.own_reference, x.wide, args.in.reference, x, n, head, first, block);
    kernel_sums(task.acc, x.wide, x.wide, c.k, c.rows(), task.keys, task.own_reference, x.wide,
                block, {}, task.kernel);
  }
}

template <class T>
void store_matrices(const ExpOmegaUpdate& args, const ExpSizes& x, const ExpTask<T>& task,
                    int64_t n, int64_t head, bool closes) {
  const Sizes& sz = x.sz;
  for (int l = 0; sz.deep() && l < sz.matrices; ++l) {
    const T* matrix = task.weights + sz.matrix[l].at;
    if (args.in.omega.log_alpha || l == sz.last())
      store_matrix_view(args.weights[l], matrix, sz.matrix[l], n, head, task.line);
    if (closes) store_matrix_view(args.chunk_weights[l], matrix, sz.matrix[l], n, head, task.line);
    if (x.momentum && l == sz.last())
      store_matrix_view(args.weights_momentum, task.momentum + sz.matrix[l].at, sz.matrix[l], n,
                        head, task.line);
  }
}

template <class T>
void update_item(const ExpOmegaUpdate& args, const ExpSizes& x, ExpUpdateTask<T>& work, int64_t n,
                 int64_t head) {
  const OmegaOptions& options = args.options.omega;
  const ExpOmegaInputs& in = args.in;
  const Sizes& sz = x.sz;
  ExpTask<T>& task = work.base;
  const Chunk<T>& c = task.chunk;
  const bool normalized = args.options.normalize == Normalize::softmax;
  begin_matrices(task, in, x, n, head);
  load_chunk(task.chunk, sz, options, in.omega, PolyMap<T>{}, n, head, 0, 1);
  scan_chunk(c, sz, x.momentum);
  const int64_t position = c.position, far = position - c.overhang;
  const bool closes = (position + 1) % options.chunk_size == 0;
  if (args.options.reads_window()) update_window_sums(args, x, task, n, head);
  finish_signals(task, x, args.options);

  for (int64_t i = 0; i < c.overhang; ++i)
    load_row(work.window_keys + i * sz.kp, sz.kp, in.keys, n, far + i, head, sz.key);
  T* const own_key = work.window_keys + c.overhang * sz.kp;
  __builtin_memcpy(own_key, c.k + c.overhang * sz.kp, sz.kp * sizeof(T));
  load_rows(work.window_rows, in.coefficients, in.momentum, x, n, head, far, c.overhang);
  const Running<T> running = task.running(normalized);
  begin_read(task, x, work.window_keys, work.window_rows, running);
  update_far_rows(args, x, task, n, head, running, closes);
  finish_read(task, x, normalized);
  finish_chunk(task, args.options, x, true);
  store_array(args.o, (n * options.heads + head) * sz.value, task.y, sz.value);

  move_rows(work.window_rows, c, x, c.overhang);
  fill_zero(work.window_rows + c.overhang * x.ld, x.ld);
  push_rows(work.window_rows, c, x, task.signals);
  store_rows(args, x, work.window_rows, n, head, far, c.rows(), closes);
  store_view(args.keys, own_key, 0, sz.key, n, head, position, position + 1);
  fill_zero(task.line, x.row);
  for (int set = 0; !closes && set < x.sets; ++set)
    store_view(args.reference[set], task.line, 0, x.row, n, head, position, position + 1);
  store_matrices(args, x, task, n, head, closes);
  store_tail_view(args.k_tail, c.k, sz.kp, sz.key, c, sz.window - 1, n, head);
  store_tail_view(args.v_tail, c.values, sz.vp, sz.value, c, sz.window - 1, n, head);
}

}  // namespace
}  // namespace atlas::kernels::cpu::ATLAS_ISA
