// What a task of the Omega rule reads and writes in tensors: states, checkpoints, window tails, and
// in the backward pass the gradients of gates, keys and values. Included by kernel bodies after
// isa_begin.h.
#pragma once
#include "kernels/cpu/omega_dual.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// A buffer for a whole state [V, dp], or for any single row on its way in or out.
inline int64_t line_elements(const Sizes& sz) {
  return larger(sz.value * sz.dp, larger(sz.window, larger(sz.kp, sz.vp)));
}

// dst [D, vp] = src [n, head, V, D] transposed, zero-padded.
template <class T>
inline void load_state(T* dst, const Strided& src, const Sizes& sz, int64_t n, int64_t head,
                       T* line) {
  for (int64_t row = 0; row < sz.value; ++row)
    load_row(line + row * sz.dp, sz.dp, src, n, head, row, sz.features);
  transpose(dst, sz.vp, line, sz.dp, sz.value, sz.features);
}

// dst [N, H, V, D] = src [D, vp] transposed
template <class T>
inline void store_state(const MutableArray& dst, const T* src, const Sizes& sz, int64_t item,
                        T* line) {
  if (dst.data == nullptr) return;
  transpose(line, sz.dp, src, sz.vp, sz.features, sz.value);
  for (int64_t row = 0; row < sz.value; ++row)
    store_array(dst, (item * sz.value + row) * sz.features, line + row * sz.dp, sz.features);
}

// Checkpoints are stored as the state is held, without its padding: [D, V].
template <class T>
inline void save_checkpoint(void* dst, const T* state, const Sizes& sz, int64_t index) {
  if (dst == nullptr) return;
  T* out = static_cast<T*>(dst) + index * sz.features * sz.value;
  for (int64_t d = 0; d < sz.features; ++d)
    for (int64_t j = 0; j < sz.value; ++j) out[d * sz.value + j] = state[d * sz.vp + j];
}

template <class T>
inline void load_checkpoint(T* state, const void* src, const Sizes& sz, int64_t index) {
  const T* in = static_cast<const T*>(src) + index * sz.features * sz.value;
  for (int64_t d = 0; d < sz.features; ++d) {
    for (int64_t j = 0; j < sz.value; ++j) state[d * sz.vp + j] = in[d * sz.value + j];
    fill_zero(state + d * sz.vp + sz.value, sz.vp - sz.value);
  }
}

// Tokens of the chunk that starts at token `first` of this call: up to the next multiple of
// chunk_size.
inline int64_t chunk_tokens(const OmegaSequence& sequence, int64_t first, int64_t chunk_size) {
  const int64_t left = chunk_size - (sequence.position + first) % chunk_size;
  return smaller(left, sequence.end - sequence.begin - first);
}

// Tokens of the chunk that ends before token `stop` of this call, as far as they belong to it.
inline int64_t chunk_tokens_before(const OmegaSequence& sequence, int64_t stop,
                                   int64_t chunk_size) {
  return stop == 0 ? 0 : smaller((sequence.position + stop - 1) % chunk_size + 1, stop);
}

// The final tail: the last W-1 tokens, from this call or from the tail it began with; zeros before
// the sequence's start.
template <class T>
inline void store_tail(const MutableArray& dst, const Strided& tokens, const Strided& tail,
                       const OmegaSequence& sequence, const OmegaOptions& options, int64_t n,
                       int64_t head, int64_t width, T* line) {
  if (dst.data == nullptr) return;
  const int64_t slots = options.window - 1, length = sequence.end - sequence.begin;
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t token = length - slots + slot;
    if (token >= 0)
      load_row(line, width, tokens, sequence.batch, sequence.begin + token, head, width);
    else if (tail && sequence.position + token >= 0)
      load_row(line, width, tail, n, slots + token, head, width);
    else
      fill_zero(line, width);
    store_array(dst, ((n * slots + slot) * options.heads + head) * width, line, width);
  }
}

// Slot j of the sums is token first - (W-1) + j. Adds the chunk's rows, hands out the chunk's own
// tokens and shifts what is left, so that the slots fit the chunk before, which has `next_tokens`
// tokens.
template <class T>
inline void settle_rows(T* sums, const T* rows, T sign, const Chunk<T>& c, const Sizes& sz,
                        int64_t ld, int64_t width, const MutableArray& out, int64_t first_row,
                        int64_t row_step, int64_t next_tokens) {
  const int64_t slots = sz.window - 1;
  for (int64_t i = 0; i < c.rows(); ++i)
    axpy(sums + (slots - c.overhang + i) * ld, sign, rows + i * ld, width);
  if (out.data != nullptr)
    for (int64_t t = 0; t < c.tokens; ++t)
      store_array(out, (first_row + t * row_step) * width, sums + (slots + t) * ld, width);
  __builtin_memmove(sums + next_tokens * ld, sums, slots * ld * sizeof(T));
  fill_zero(sums, next_tokens * ld);
}

template <class T>
inline void store_gates(const OmegaBackward& args, const ChunkGrads<T>& g, const Chunk<T>& c,
                        const Sizes& sz, int64_t first_row, T* line) {
  const int64_t heads = args.options.heads;
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int64_t row = first_row + t * heads;
    if (args.grad_eta.data != nullptr) store_array(args.grad_eta, row, g.gates.eta + t, 1);
    if (args.grad_log_alpha.data != nullptr)
      store_array(args.grad_log_alpha, row, g.gates.alpha + t, 1);
    if (args.grad_log_theta.data != nullptr)
      store_array(args.grad_log_theta, row, g.gates.theta + t, 1);
    if (args.grad_gamma.data == nullptr) continue;
    const T* newest = g.gates.a + t * sz.rp + c.overhang + t;
    for (int64_t j = 0; j < sz.window; ++j) line[j] = j <= c.overhang + t ? *(newest - j) : T(0);
    store_array(args.grad_gamma, row * sz.window, line, sz.window);
  }
}

template <class T>
inline void load_grad_state(T* dst, const Strided& src, const Sizes& sz, int64_t n, int64_t head,
                            T* line) {
  if (src)
    load_state(dst, src, sz, n, head, line);
  else
    fill_zero(dst, sz.features * sz.vp);
}

// Sums of the key or value gradients after the last token: what the final tail's gradient brings,
// behind the slots of the last chunk's `tokens`. Slots before the sequence's start do not exist.
template <class T>
inline void load_tail_grads(T* sums, const Strided& grad_tail, const Sizes& sz, int64_t ld,
                            int64_t width, int64_t n, int64_t head, int64_t existing,
                            int64_t tokens) {
  fill_zero(sums, sz.rows * ld);
  if (!grad_tail) return;
  for (int64_t slot = larger(0, sz.window - 1 - existing); slot < sz.window - 1; ++slot)
    load_row(sums + (slot + tokens) * ld, ld, grad_tail, n, slot, head, width);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
