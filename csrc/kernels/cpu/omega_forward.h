// The forward pass of the Omega rule over the chunks of one or several heads; included by
// omega_rule.inc.h.
#pragma once
#include "kernels/cpu/omega_io.h"
#include "kernels/cpu/omega_muon.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

// The memory of one (sequence, head) on its way through the chunks.
template <class T>
struct HeadState {
  int64_t n, head;
  int64_t first, checkpoint;          // of the next chunk
  T *weights, *momentum, *reference;  // states
  const T* current_reference;         // weights, but for a call that begins in mid-chunk
};

// Heads that take turns chunk by chunk, because their rows share pages of memory: as many as states
// fit a small cache.
constexpr int64_t kMostTurns = 4;

template <class T>
int64_t heads_in_turn(const Sizes& sz) {
  constexpr int64_t budget = 128 << 10;
  const int64_t bytes = 2 * sz.state * static_cast<int64_t>(sizeof(T));
  return larger(1, smaller(kMostTurns, budget / bytes));
}

template <class T>
struct ForwardTask {
  Chunk<T> chunk;
  Signals<T> signals;
  DualWork<T> dual;
  MuonWork<T> muon;
  HeadState<T> heads[kMostTurns];
  T* y;     // [tokens, vp]
  T* line;  // line_elements

  ForwardTask(Arena<T>& arena, const Sizes& sz, const OmegaOptions& options)
      : chunk(arena, sz, options.degree),
        signals(arena, sz),
        dual(arena, sz, options),
        muon(arena, sz, options) {
    for (int64_t i = 0; i < heads_in_turn<T>(sz); ++i) {
      heads[i].weights = arena.take(sz.state);
      heads[i].momentum = arena.take(sz.state);
      heads[i].reference = arena.take(sz.state);
    }
    y = arena.take(sz.chunk * sz.vp);
    line = arena.take(line_elements(sz));
  }
};

template <class T>
void begin_forward(const OmegaForward& args, const Sizes& sz, HeadState<T>& state, int64_t item,
                   T* line) {
  state.n = item / args.options.heads;
  state.head = item % args.options.heads;
  state.first = 0;
  state.checkpoint = args.in.sequences[state.n].first_checkpoint;
  load_state(state.weights, args.in.weights, sz, state.n, state.head, line);
  if (args.in.log_theta)
    load_state(state.momentum, args.in.momentum, sz, state.n, state.head, line);
  else
    fill_zero(state.momentum, sz.state);
  state.current_reference = state.weights;
  if (!args.in.chunk_weights[0]) return;
  load_state(state.reference, args.in.chunk_weights, sz, state.n, state.head, line);
  state.current_reference = state.reference;
}

// Takes the next chunk of `state`'s sequence; false when there is none left.
template <class T>
bool forward_chunk(const OmegaForward& args, const Sizes& sz, const PolyMap<T>& map,
                   ForwardTask<T>& task, HeadState<T>& state) {
  const OmegaOptions& options = args.options;
  const OmegaSequence& sequence = args.in.sequences[state.n];
  const int64_t length = sequence.end - sequence.begin, item = state.n * options.heads + state.head;
  if (state.first == length) return false;
  const bool momentum = static_cast<bool>(args.in.log_theta);
  const int64_t tokens = chunk_tokens(sequence, state.first, options.chunk_size);
  const int64_t checkpoint = state.checkpoint++ * options.heads + state.head;
  const bool ends = state.first + tokens == length;
  load_chunk(task.chunk, sz, options, args.in, map, state.n, state.head, state.first, tokens);
  const int64_t next = state.first + tokens;
  announce_chunk(task.chunk.upcoming, sz, args.in, state.n, state.head, next,
                 ends ? 0 : chunk_tokens(sequence, next, options.chunk_size));
  save_checkpoint(args.weights_checkpoints, state.weights, sz, checkpoint);
  if (momentum) save_checkpoint(args.momentum_checkpoints, state.momentum, sz, checkpoint);
  if (ends) store_state(args.chunk_weights, state.current_reference, sz, item, task.line);
  memory_signals(task.signals, task.chunk, sz, options, state.current_reference, task.line);
  if (options.ns.steps > 0)
    muon_forward(task.y, state.weights, state.momentum, task.chunk, sz, options, momentum,
                 task.signals, task.muon);
  else
    dual_forward(task.y, state.weights, momentum ? state.momentum : nullptr, task.chunk, sz,
                 options, map, task.signals, task.dual, !ends || args.weights[0].data != nullptr);
  const int64_t row =
      (sequence.batch * args.in.tokens + sequence.begin + state.first) * options.heads + state.head;
  for (int64_t t = 0; t < tokens; ++t) {
    T* y = task.y + t * sz.vp;
    if (options.residual) axpy(y, T(1), task.chunk.q + t * sz.kp, sz.value);
    store_array(args.o, (row + t * options.heads) * sz.value, y, sz.value);
  }
  state.current_reference = state.weights;
  state.first += tokens;
  return true;
}

template <class T>
void end_forward(const OmegaForward& args, const Sizes& sz, const HeadState<T>& state, T* line) {
  const OmegaOptions& options = args.options;
  const int64_t n = state.n, head = state.head, item = n * options.heads + head;
  const OmegaSequence& sequence = args.in.sequences[n];
  const bool closed = (sequence.position + state.first) % options.chunk_size == 0;
  store_state(args.weights, state.weights, sz, item, line);
  store_state(args.momentum, state.momentum, sz, item, line);
  if (closed || state.first == 0)
    store_state(args.chunk_weights, state.current_reference, sz, item, line);
  store_tail(args.k_tail, args.in.k, args.in.k_tail, sequence, options, n, head, sz.key, line);
  store_tail(args.v_tail, args.in.v, args.in.v_tail, sequence, options, n, head, sz.value, line);
}

// The items of one task: groups of neighbouring heads that take turns, dealt round-robin.
template <class T>
void forward_items(const OmegaForward& args, const Sizes& sz, const PolyMap<T>& map,
                   ForwardTask<T>& work, int64_t task, int64_t items, int64_t tasks) {
  const int64_t turns = larger(1, smaller(heads_in_turn<T>(sz), items / tasks));
  for (int64_t first = task * turns; first < items; first += tasks * turns) {
    const int64_t count = smaller(turns, items - first);
    for (int64_t i = 0; i < count; ++i)
      begin_forward(args, sz, work.heads[i], first + i, work.line);
    for (bool more = true; more;) {
      more = false;
      for (int64_t i = 0; i < count; ++i) more |= forward_chunk(args, sz, map, work, work.heads[i]);
    }
    for (int64_t i = 0; i < count; ++i) end_forward(args, sz, work.heads[i], work.line);
  }
}

}  // namespace
}  // namespace atlas::kernels::cpu::ATLAS_ISA
