// What a task of the Omega rule reads and writes in tensors: states, checkpoints, window tails, and
// in the backward pass the gradients of gates, keys and values. Included by kernel bodies after
// isa_begin.h.
#pragma once
#include "kernels/cpu/omega_dual_backward.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// A buffer for any matrix of the state as [out, ip], or for any single row on its way in or out.
inline int64_t line_elements(const Sizes& sz) {
  int64_t most = larger(sz.window, larger(sz.kp, sz.vp));
  for (int l = 0; l < sz.matrices; ++l) most = larger(most, sz.matrix[l].out * sz.matrix[l].ip);
  return most;
}

// matrix [in, op] = src [n, head, out, in] transposed, zero-padded.
template <class T>
inline void load_matrix(T* matrix, const Strided& src, const MatrixSizes& m, int64_t n,
                        int64_t head, T* line) {
  for (int64_t row = 0; row < m.out; ++row)
    load_row(line + row * m.ip, m.ip, src, n, head, row, m.in);
  transpose(matrix, m.op, line, m.ip, m.out, m.in);
}

// state = src, each [n, head, out, in] transposed to [in, op], zero-padded; absent: zero.
template <class T>
inline void load_state(T* state, const Strided* src, const Sizes& sz, int64_t n, int64_t head,
                       T* line) {
  if (!src[0]) return fill_zero(state, sz.state);
  for (int l = 0; l < sz.matrices; ++l)
    load_matrix(state + sz.matrix[l].at, src[l], sz.matrix[l], n, head, line);
}

// dst [N, H, out, in] = matrix [in, op] transposed.
template <class T>
inline void store_matrix(const MutableArray& dst, const T* matrix, const MatrixSizes& m,
                         int64_t item, T* line) {
  transpose(line, m.ip, matrix, m.op, m.in, m.out);
  for (int64_t row = 0; row < m.out; ++row)
    store_array(dst, (item * m.out + row) * m.in, line + row * m.ip, m.in);
}

// dst, each [N, H, out, in], = state transposed.
template <class T>
inline void store_state(const MutableArray* dst, const T* state, const Sizes& sz, int64_t item,
                        T* line) {
  if (dst[0].data == nullptr) return;
  for (int l = 0; l < sz.matrices; ++l)
    store_matrix(dst[l], state + sz.matrix[l].at, sz.matrix[l], item, line);
}

// Checkpoints are stored as the state is held, without its padding: each [in, out].
template <class T>
inline void save_checkpoint(void* const* dst, const T* state, const Sizes& sz, int64_t index) {
  if (dst[0] == nullptr) return;
  for (int l = 0; l < sz.matrices; ++l) {
    const MatrixSizes& m = sz.matrix[l];
    const T* in = state + m.at;
    T* out = static_cast<T*>(dst[l]) + index * m.in * m.out;
    for (int64_t d = 0; d < m.in; ++d)
      for (int64_t j = 0; j < m.out; ++j) out[d * m.out + j] = in[d * m.op + j];
  }
}

template <class T>
inline void load_checkpoint(T* state, const void* const* src, const Sizes& sz, int64_t index) {
  for (int l = 0; l < sz.matrices; ++l) {
    const MatrixSizes& m = sz.matrix[l];
    const T* in = static_cast<const T*>(src[l]) + index * m.in * m.out;
    T* out = state + m.at;
    for (int64_t d = 0; d < m.in; ++d) {
      for (int64_t j = 0; j < m.out; ++j) out[d * m.op + j] = in[d * m.out + j];
      fill_zero(out + d * m.op + m.out, m.op - m.out);
    }
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

template <class T, class Args>
inline void store_gates(const Args& args, int64_t heads, const ChunkGrads<T>& g, const Chunk<T>& c,
                        const Sizes& sz, int64_t first_row, T* line) {
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
