// The backward pass of the Omega rule over the chunks of one head, last to first; included by
// omega_rule.inc.h.
#pragma once
#include "kernels/cpu/omega_io.h"
#include "kernels/cpu/omega_muon_backward.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

template <class T>
struct BackwardTask {
  Chunk<T> chunk;
  Signals<T> signals;
  ChunkGrads<T> grads;
  DualBackwardWork<T> dual;
  MuonBackwardWork<T> muon;
  SignalsBackwardWork<T> inner;
  T *weights, *momentum, *reference, *grad_reference;  // states
  T* q;                                                // [tokens, kp] gradient of q
  T* k;                                                // [rows, kp] gradient of the window's keys
  T *k_sum, *v_sum;                                    // [W-1 + chunk, kp], [W-1 + chunk, vp]
  T* upper;
  T* line;  // line_elements

  BackwardTask(Arena<T>& arena, const Sizes& sz, const OmegaOptions& options, bool with_momentum)
      : chunk(arena, sz, options.degree),
        signals(arena, sz),
        grads(arena, sz, with_momentum),
        dual(arena, sz, options),
        muon(arena, sz, options),
        inner(arena, sz) {
    weights = arena.take(sz.state);
    momentum = arena.take(sz.state);
    reference = arena.take(sz.state);
    grad_reference = arena.take(sz.state);
    q = options.degree == 0 ? grads.u : arena.take(sz.chunk * sz.kp + kWidth<T>);
    k = options.degree == 0 ? grads.x : arena.take(sz.rows * sz.kp + kWidth<T>);
    k_sum = arena.take(sz.rows * sz.kp);
    v_sum = arena.take(sz.rows * sz.vp);
    upper = arena.take(poly_monomials_scratch<T>(sz.key, options.degree));
    line = arena.take(line_elements(sz));
  }
};

// From the gradients of d, u and x to those of k, q, v and M_ref: x_i = phi(k_i), u_t = phi(q_t).
template <class T>
void chunk_inputs_backward(BackwardTask<T>& task, const Sizes& sz, const OmegaOptions& options,
                           const PolyMap<T>& map, const T* reference) {
  const Chunk<T>& c = task.chunk;
  const ChunkGrads<T>& g = task.grads;
  const T* grad_e = g.d[sz.last()];
  memory_signals_backward({{g.d[0], g.d[1], g.d[2]}, g.h, g.x, task.grad_reference, g.wants_x},
                          task.signals, c, sz, options, reference, task.inner);
  if (g.wants_u) {
    if (options.degree > 0) {
      fill_zero(task.q, c.tokens * sz.kp + kWidth<T>);
      for (int64_t t = 0; t < c.tokens; ++t)
        poly_row_backward(task.q + t * sz.kp, g.c, g.u + t * sz.dp, c.q + t * sz.kp, map,
                          c.monomials, task.upper);
    }
    for (int64_t t = 0; options.residual && t < c.tokens; ++t)
      axpy(task.q + t * sz.kp, T(1), g.y + t * sz.vp, sz.value);
    if (options.ns.steps == 0) causal_read(task.q, c, sz, g.scores, c.k, sz.kp, sz.key);
  }
  if (g.wants_x) {
    if (options.degree > 0) {
      fill_zero(task.k, c.rows() * sz.kp + kWidth<T>);
      for (int64_t i = 0; i < c.rows(); ++i)
        poly_row_backward(task.k + i * sz.kp, g.c, g.x + i * sz.dp, c.k + i * sz.kp, map,
                          c.monomials, task.upper);
    }
    for (int64_t i = 0; options.residual && options.l2 && i < c.rows(); ++i)
      axpy(task.k + i * sz.kp, T(1), grad_e + i * sz.vp, sz.value);
    if (options.ns.steps == 0) causal_write(task.k, c, sz, g.scores, c.q, sz.kp, sz.key);
  }
}

// Takes the gradients of the final state; those of keys and values go to the sums, whose last chunk
// follows.
template <class T>
void begin_backward(const OmegaBackward& args, const Sizes& sz, BackwardTask<T>& task, int64_t n,
                    int64_t head) {
  const OmegaSequence& sequence = args.in.sequences[n];
  const ChunkGrads<T>& g = task.grads;
  const int64_t length = sequence.end - sequence.begin, end_position = sequence.position + length;
  const int64_t tokens = chunk_tokens_before(sequence, length, args.options.chunk_size);
  load_state(g.weights, args.grad_final_weights, sz, n, head, task.line);
  if (g.momentum != nullptr)
    load_state(g.momentum, args.grad_final_momentum, sz, n, head, task.line);
  load_state(task.grad_reference, args.grad_final_chunk_weights, sz, n, head, task.line);
  load_tail_grads(task.k_sum, args.grad_final_k_tail, sz, sz.kp, sz.key, n, head, end_position,
                  tokens);
  load_tail_grads(task.v_sum, args.grad_final_v_tail, sz, sz.vp, sz.value, n, head, end_position,
                  tokens);
  fill_zero(g.c, kMaxDegree + 1);
  // The final chunk_weights are M_T where the last token closed a chunk, else the last chunk's
  // M_ref.
  if (length > 0 && end_position % args.options.chunk_size == 0) {
    axpy(g.weights, T(1), task.grad_reference, sz.state);
    fill_zero(task.grad_reference, sz.state);
  }
}

// Recomputes the chunk of `tokens` tokens from `first`, whose number is `chunk`, and differentiates
// it.
template <class T>
void backward_chunk(const OmegaBackward& args, const Sizes& sz, const PolyMap<T>& map,
                    BackwardTask<T>& task, int64_t n, int64_t head, int64_t chunk, int64_t first,
                    int64_t tokens) {
  const OmegaOptions& options = args.options;
  const OmegaInputs& in = args.in;
  const OmegaSequence& sequence = in.sequences[n];
  const Chunk<T>& c = task.chunk;
  const ChunkGrads<T>& g = task.grads;
  const int64_t checkpoint = (sequence.first_checkpoint + chunk) * options.heads + head;
  const bool momentum = g.momentum != nullptr;
  load_chunk(task.chunk, sz, options, in, map, n, head, first, tokens);
  const int64_t before = chunk_tokens_before(sequence, first, options.chunk_size);
  announce_chunk(task.chunk.upcoming, sz, in, n, head, first - before, before);
  if (args.grad_o)
    task.chunk.upcoming.add(args.grad_o, sequence.batch, sequence.begin + first - before, head,
                            sz.value);
  load_checkpoint(task.weights, args.weights_checkpoints, sz, checkpoint);
  if (momentum) load_checkpoint(task.momentum, args.momentum_checkpoints, sz, checkpoint);
  // Only the first chunk of a call can have a reference of its own: it may begin in mid-chunk.
  const bool own_reference = chunk == 0 && in.chunk_weights[0];
  const T* reference = own_reference ? task.reference : task.weights;
  if (own_reference) load_state(task.reference, in.chunk_weights, sz, n, head, task.line);
  fill_zero(g.y, tokens * sz.vp);
  for (int64_t t = 0; args.grad_o && t < tokens; ++t)
    load_row(g.y + t * sz.vp, sz.vp, args.grad_o, sequence.batch, sequence.begin + first + t, head,
             sz.value);
  memory_signals(task.signals, c, sz, options, reference, task.line);
  if (options.ns.steps > 0)
    muon_backward(g, c, sz, options, momentum, task.weights, task.momentum, task.signals,
                  task.muon);
  else
    dual_backward(g, c, sz, options, map, task.weights, momentum ? task.momentum : nullptr,
                  task.signals, task.dual);
  chunk_inputs_backward(task, sz, options, map, reference);
  if (own_reference) return;
  axpy(g.weights, T(1), task.grad_reference, sz.state);
  fill_zero(task.grad_reference, sz.state);
}

// What is left after the first chunk: the gradients of the state that the call began with.
template <class T>
void end_backward(const OmegaBackward& args, const Sizes& sz, BackwardTask<T>& task, int64_t n,
                  int64_t head) {
  const ChunkGrads<T>& g = task.grads;
  const int64_t heads = args.options.heads, item = n * heads + head, slots = sz.window - 1;
  if (args.in.chunk_weights[0])
    store_state(args.grad_chunk_weights, task.grad_reference, sz, item, task.line);
  else
    axpy(g.weights, T(1), task.grad_reference, sz.state);
  store_state(args.grad_weights, g.weights, sz, item, task.line);
  if (g.momentum != nullptr) store_state(args.grad_momentum, g.momentum, sz, item, task.line);
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t row = (n * slots + slot) * heads + head;
    if (args.grad_k_tail.data != nullptr)
      store_array(args.grad_k_tail, row * sz.key, task.k_sum + slot * sz.kp, sz.key);
    if (args.grad_v_tail.data != nullptr)
      store_array(args.grad_v_tail, row * sz.value, task.v_sum + slot * sz.vp, sz.value);
  }
  const int scales = args.options.degree + 1;
  for (int l = 0; args.grad_scales != nullptr && l < scales; ++l)
    args.grad_scales[item * scales + l] = static_cast<double>(g.c[l]);
}

template <class T>
void backward_item(const OmegaBackward& args, const Sizes& sz, const PolyMap<T>& map,
                   BackwardTask<T>& task, int64_t n, int64_t head) {
  const OmegaSequence& sequence = args.in.sequences[n];
  const Chunk<T>& c = task.chunk;
  const int64_t length = sequence.end - sequence.begin, heads = args.options.heads;
  const int64_t chunk_size = args.options.chunk_size;
  begin_backward(args, sz, task, n, head);
  int64_t chunk = 0;
  for (int64_t first = 0; first < length; ++chunk)
    first += chunk_tokens(sequence, first, chunk_size);
  for (int64_t end = length; end > 0; end = c.first) {
    const int64_t tokens = chunk_tokens_before(sequence, end, chunk_size), first = end - tokens;
    const int64_t row = (sequence.batch * args.in.tokens + sequence.begin + first) * heads + head;
    backward_chunk(args, sz, map, task, n, head, --chunk, first, tokens);
    store_gates(args, heads, task.grads, c, sz, row, task.line);
    for (int64_t t = 0; args.grad_q.data != nullptr && t < tokens; ++t)
      store_array(args.grad_q, (row + t * heads) * sz.key, task.q + t * sz.kp, sz.key);
    const int64_t next = chunk_tokens_before(sequence, first, chunk_size);
    if (task.grads.wants_x)
      settle_rows(task.k_sum, task.k, T(1), c, sz, sz.kp, sz.key, args.grad_k, row, heads, next);
    settle_rows(task.v_sum, task.grads.d[sz.last()], T(-1), c, sz, sz.vp, sz.value, args.grad_v,
                row, heads, next);
  }
  end_backward(args, sz, task, n, head);
}

}  // namespace
}  // namespace atlas::kernels::cpu::ATLAS_ISA
