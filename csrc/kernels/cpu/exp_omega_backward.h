// The backward pass of the exponential Omega rule over the chunks of one head, last to first;
// included by exp_omega_rule.inc.h.
#pragma once
#include "kernels/cpu/exp_omega_rebuild.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

// Through o = y / rho: g.y from the gradient of o to that of y, which is computed anew.
template <class T>
void root_mean_square_backward(const ExpOmegaBackward& args, const ExpSizes& x,
                               ExpBackwardTask<T>& task) {
  const Chunk<T>& c = task.chunk;
  const Sizes& sz = x.sz;
  const T* y = task.reads;
  if (sz.deep()) {
    dual_read(task.y, c, sz, sz.matrix[sz.last()], task.dual.queries.h, task.weights,
              x.momentum ? task.momentum : nullptr, task.dual.inner.coefficients,
              task.signals.d[sz.last()], task.dual.reads);
    y = task.y;
  }
  for (int64_t t = 0; t < c.tokens; ++t) {
    T* line = task.line;
    __builtin_memcpy(line, y + t * sz.vp, sz.value * sizeof(T));
    if (args.options.omega.residual) axpy(line, T(1), c.q + t * sz.kp, sz.value);
    const T factor = T(1) / root_mean_square(line, sz.value);
    T* grad = task.grads.y + t * sz.vp;
    const T share = dot(grad, line, sz.value) * factor * factor / static_cast<T>(sz.value);
    for (int64_t i = 0; i < sz.value; ++i) grad[i] = factor * (grad[i] - share * line[i]);
  }
}

// Takes the gradients of the final state.
template <class T>
void begin_backward(const ExpOmegaBackward& args, const ExpSizes& x, ExpBackwardTask<T>& task,
                    int64_t n, int64_t head) {
  const ExpOmegaInputs& in = args.in;
  const OmegaSequence& sequence = in.omega.sequences[n];
  const Sizes& sz = x.sz;
  const ChunkGrads<T>& g = task.grads;
  const int64_t length = sequence.end - sequence.begin, count = sequence.position + length;
  const int64_t slots = sz.window - 1;
  load_keys(task.keys, in, x, n, head);
  load_matrices(task.raw_maps, in.omega.weights, sz, n, head, task.line);
  load_rows(task.grad_rows, args.grad_final_coefficients, args.grad_final_momentum, x, n, head, 0,
            count);
  load_matrices(g.weights, args.grad_final_weights, sz, n, head, task.line);
  load_matrices(task.grad_reference, args.grad_final_chunk_weights, sz, n, head, task.line);
  if (x.momentum && sz.deep()) {
    const MatrixSizes& last = sz.matrix[sz.last()];
    fill_zero(g.momentum, sz.state);
    if (args.grad_final_weights_momentum)
      load_matrix(g.momentum + last.at, args.grad_final_weights_momentum, last, n, head, task.line);
  }
  if (task.own_reference != nullptr) {
    load_sets(task.own_reference, x.wide, in.reference, x, n, head, 0, sequence.position);
    load_matrices(task.reference, in.omega.chunk_weights, sz, n, head, task.line);
    fill_zero(task.grad_own_reference, sequence.position * x.wide);
  }
  fill_zero(task.grad_keys, count * sz.kp);
  for (int64_t j = 0; args.grad_final_keys && j < count; ++j)
    load_row(task.grad_keys + j * sz.kp, sz.kp, args.grad_final_keys, n, j, head, sz.key);
  fill_zero(task.grad_values, length * sz.vp);
  fill_zero(task.grad_k_tail, slots * sz.kp);
  fill_zero(task.grad_v_tail, slots * sz.vp);
  for (int64_t slot = larger(0, slots - count); slot < slots; ++slot) {
    const int64_t token = length - slots + slot;
    T* k = token >= 0 ? task.grad_keys + (sequence.position + token) * sz.kp
                      : task.grad_k_tail + (slots + token) * sz.kp;
    T* v =
        token >= 0 ? task.grad_values + token * sz.vp : task.grad_v_tail + (slots + token) * sz.vp;
    if (args.grad_final_k_tail) {
      load_row(task.line, sz.kp, args.grad_final_k_tail, n, slot, head, sz.key);
      axpy(k, T(1), task.line, sz.key);
    }
    if (args.grad_final_v_tail) {
      load_row(task.line, sz.vp, args.grad_final_v_tail, n, slot, head, sz.value);
      axpy(v, T(1), task.line, sz.value);
    }
  }
}

// grad [count, ld] += the gradient of the final state's reference rows
template <class T>
void add_final_reference(const ExpOmegaBackward& args, const ExpSizes& x, T* grad, int64_t ld,
                         int64_t n, int64_t head, int64_t count, T* line) {
  for (int set = 0; set < x.sets && args.grad_final_reference[set]; ++set)
    for (int64_t j = 0; j < count; ++j) {
      load_row(line, x.rp, args.grad_final_reference[set], n, j, head, x.row);
      axpy(grad + j * ld + set * x.rp, T(1), line, x.row);
    }
}

// Adds the gradients of a chunk's window rows to those of the tokens they are of.
template <class T>
void settle_window(ExpBackwardTask<T>& task, const ExpSizes& x, const OmegaSequence& sequence) {
  const Chunk<T>& c = task.chunk;
  const Sizes& sz = x.sz;
  const T* grad_e = task.grads.d[sz.last()];
  for (int64_t i = 0; i < c.rows(); ++i) {
    const int64_t token = c.first - c.overhang + i, slot = sz.window - 1 + token;
    T* k = token >= 0 ? task.grad_keys + (sequence.position + token) * sz.kp
                      : task.grad_k_tail + slot * sz.kp;
    T* v = token >= 0 ? task.grad_values + token * sz.vp : task.grad_v_tail + slot * sz.vp;
    if (task.grads.wants_x) axpy(k, T(1), task.grads.x + i * sz.kp, sz.key);
    axpy(v, T(-1), grad_e + i * sz.vp, sz.value);
  }
}

// From the gradients of d and of the hidden layer to those of the window's keys and of M_ref.
template <class T>
void window_backward(const ExpOmegaBackward& args, const ExpSizes& x, ExpBackwardTask<T>& task,
                     bool own) {
  const ExpOmegaOptions& options = args.options;
  const Sizes& sz = x.sz;
  const Chunk<T>& c = task.chunk;
  const ChunkGrads<T>& g = task.grads;
  if (sz.deep())
    memory_signals_backward({{g.d[0], g.d[1], g.d[2]}, g.h, g.x, task.grad_reference, g.wants_x},
                            task.signals, c, sz, options.omega, own ? task.reference : task.weights,
                            task.inner);
  for (int64_t i = 0; options.omega.l2 && options.omega.residual && i < c.rows(); ++i)
    axpy(g.x + i * sz.kp, T(1), g.d[sz.last()] + i * sz.vp, sz.value);
  if (!options.reads_window()) return;
  T* const linear[1] = {g.d[0]};
  window_sums_backward(task, x, sz.deep() ? task.inner.z : linear,
                       own ? task.own_reference : task.rows,
                       own ? task.grad_own_reference : task.grad_rows, own ? x.wide : x.ld);
}

template <class T>
void backward_chunk(const ExpOmegaBackward& args, const ExpSizes& x, ExpBackwardTask<T>& task,
                    const Walk& walk, int64_t n, int64_t head, int64_t number) {
  const OmegaOptions& options = args.options.omega;
  const OmegaSequence& sequence = args.in.omega.sequences[n];
  const Sizes& sz = x.sz;
  const Chunk<T>& c = task.chunk;
  const ChunkGrads<T>& g = task.grads;
  const int64_t heads = options.heads, first = walk.start(number) - sequence.position;
  const int64_t tokens = chunk_tokens(sequence, first, options.chunk_size);
  const int64_t index = (sequence.first_checkpoint + number) * heads + head;
  const int64_t row =
      (sequence.batch * args.in.omega.tokens + sequence.begin + first) * heads + head;
  const bool own = number == 0 && task.own_reference != nullptr;
  const bool normalized = args.options.normalize == Normalize::softmax;
  load_chunk(task.chunk, sz, options, args.in.omega, PolyMap<T>{}, n, head, first, tokens);
  scan_chunk(c, sz, x.momentum);
  rebuild_rows(args, x, task, walk, n, head, number);
  rebuild_matrices(args, x, task, index, number);
  load_saved(args, x, task, own ? task.reference : task.weights, index, row);
  near_kernel(task.near, c, sz, task.keys, task.keys.rows + (c.position - c.overhang) * sz.kp, {},
              normalized ? task.shift : nullptr);
  if (sz.deep()) rebuild_queries(args, x, task);
  fill_zero(g.y, tokens * sz.vp);
  for (int64_t t = 0; args.grad_o && t < tokens; ++t)
    load_row(g.y + t * sz.vp, sz.vp, args.grad_o, sequence.batch, sequence.begin + first + t, head,
             sz.value);
  if (args.options.normalize == Normalize::rms) root_mean_square_backward(args, x, task);

  fill_zero(g.gates.a, tokens * sz.rp);
  fill_zero(g.gates.cf, tokens * sz.rp);
  fill_zero(g.gates.p, tokens);
  fill_zero(g.gates.s, tokens);
  fill_zero(g.gates.m, tokens);
  fill_zero(g.u, tokens * sz.kp);
  fill_zero(g.x, c.rows() * sz.kp);
  for (int set = 0; set < x.sets; ++set) fill_zero(g.d[set], c.rows() * x.rp);
  if (sz.deep()) deep_read_backward(task, x);
  advance_rows_backward(task, x);
  T* const linear[1] = {g.y};
  read_rows_backward(task, x, sz.deep() ? g.z : linear, normalized);
  window_backward(args, x, task, own);
  scan_chunk_backward(g.gates, c, sz, x.momentum);
  store_gates(args, heads, g, c, sz, row, task.line);
  for (int64_t t = 0; args.grad_q.data != nullptr && t < tokens; ++t) {
    if (options.residual) axpy(g.u + t * sz.kp, T(1), g.y + t * sz.vp, sz.value);
    store_array(args.grad_q, (row + t * heads) * sz.key, g.u + t * sz.kp, sz.key);
  }
  settle_window(task, x, sequence);
  if (own) return;
  axpy(g.weights, T(1), task.grad_reference, sz.state);
  fill_zero(task.grad_reference, sz.state);
}

// What is left after the first chunk: gradients of tokens, and of the state the call began with.
template <class T>
void end_backward(const ExpOmegaBackward& args, const ExpSizes& x, ExpBackwardTask<T>& task,
                  int64_t n, int64_t head) {
  const OmegaSequence& sequence = args.in.omega.sequences[n];
  const Sizes& sz = x.sz;
  const ChunkGrads<T>& g = task.grads;
  const int64_t heads = args.options.omega.heads, item = n * heads + head, slots = sz.window - 1;
  for (int64_t t = 0; t < sequence.end - sequence.begin; ++t) {
    const int64_t row = (sequence.batch * args.in.omega.tokens + sequence.begin + t) * heads + head;
    if (args.grad_k.data != nullptr)
      store_array(args.grad_k, row * sz.key, task.grad_keys + (sequence.position + t) * sz.kp,
                  sz.key);
    if (args.grad_v.data != nullptr)
      store_array(args.grad_v, row * sz.value, task.grad_values + t * sz.vp, sz.value);
  }
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t row = (n * slots + slot) * heads + head;
    if (args.grad_k_tail.data != nullptr)
      store_array(args.grad_k_tail, row * sz.key, task.grad_k_tail + slot * sz.kp, sz.key);
    if (args.grad_v_tail.data != nullptr)
      store_array(args.grad_v_tail, row * sz.value, task.grad_v_tail + slot * sz.vp, sz.value);
  }
  for (int64_t j = 0; j < sequence.position; ++j) {
    const int64_t row = (n * args.capacity + j) * heads + head;
    if (args.grad_keys.data != nullptr)
      store_array(args.grad_keys, row * sz.key, task.grad_keys + j * sz.kp, sz.key);
    for (int set = 0; set < x.sets; ++set) {
      const T* grad = task.grad_rows + j * x.ld + set * x.rp;
      if (args.grad_coefficients[set].data != nullptr)
        store_array(args.grad_coefficients[set], row * x.row, grad, x.row);
      if (x.momentum && args.grad_momentum[set].data != nullptr)
        store_array(args.grad_momentum[set], row * x.row, grad + x.wide, x.row);
      if (args.grad_reference[set].data != nullptr)
        store_array(args.grad_reference[set], row * x.row,
                    task.grad_own_reference + j * x.wide + set * x.rp, x.row);
    }
  }
  if (!sz.deep()) return;
  if (task.own_reference != nullptr)
    store_state(args.grad_chunk_weights, task.grad_reference, sz, item, task.line);
  else
    axpy(g.weights, T(1), task.grad_reference, sz.state);
  store_state(args.grad_weights, g.weights, sz, item, task.line);
  const MatrixSizes& last = sz.matrix[sz.last()];
  if (x.momentum && args.grad_weights_momentum.data != nullptr)
    store_matrix(args.grad_weights_momentum, g.momentum + last.at, last, item, task.line);
}

template <class T>
void backward_item(const ExpOmegaBackward& args, const ExpSizes& x, ExpBackwardTask<T>& task,
                   int64_t n, int64_t head) {
  const OmegaSequence& sequence = args.in.omega.sequences[n];
  const ChunkGrads<T>& g = task.grads;
  const int64_t length = sequence.end - sequence.begin, chunk = args.options.omega.chunk_size;
  const int64_t end = sequence.position + length;
  const Walk walk{sequence.position, chunk, x.sz.window};
  begin_backward(args, x, task, n, head);
  const int64_t chunks = scan_moves(args, x, task, n, head);
  // The final M_ref is M_T where the last token closed a chunk, else that of the last chunk.
  const bool closed = length > 0 && end % chunk == 0;
  const bool owned = !closed && chunks <= 1 && task.own_reference != nullptr;
  if (closed) {
    axpy(g.weights, T(1), task.grad_reference, x.sz.state);
    fill_zero(task.grad_reference, x.sz.state);
    add_final_reference(args, x, task.grad_rows, x.ld, n, head, end, task.line);
  } else if (owned) {
    add_final_reference(args, x, task.grad_own_reference, x.wide, n, head, sequence.position,
                        task.line);
  }
  for (int64_t number = chunks - 1; number >= 0; --number) {
    backward_chunk(args, x, task, walk, n, head, number);
    if (number == chunks - 1 && !closed && !owned)
      add_final_reference(args, x, task.grad_rows, x.ld, n, head, walk.start(number), task.line);
  }
  end_backward(args, x, task, n, head);
}

}  // namespace
}  // namespace atlas::kernels::cpu::ATLAS_ISA
