// The forward pass of the exponential Omega rule over the chunks of one head, and one token in
// place; included by exp_omega_rule.inc.h.
#pragma once
#include "kernels/cpu/exp_omega_chunk.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

// Saved matrices are held as [in, out] without padding.
template <class T>
void pack_matrix(T* dst, const T* matrix, const MatrixSizes& m) {
  for (int64_t i = 0; i < m.in; ++i)
    __builtin_memcpy(dst + i * m.out, matrix + i * m.op, m.out * sizeof(T));
}

template <class T>
void save_start(const ExpOmegaSaved& saved, const ExpTask<T>& task, const ExpSizes& x,
                int64_t index) {
  if (saved.weights == nullptr) return;
  const MatrixSizes& m = x.sz.matrix[x.sz.last()];
  const int64_t at = index * m.in * m.out;
  pack_matrix(static_cast<T*>(saved.weights) + at, task.weights + m.at, m);
  if (x.momentum) pack_matrix(static_cast<T*>(saved.momentum) + at, task.momentum + m.at, m);
}

template <class T>
void save_end(const ExpOmegaSaved& saved, const ExpTask<T>& task, const ExpSizes& x, int64_t index,
              int64_t row, int64_t heads) {
  const Chunk<T>& c = task.chunk;
  const int64_t window = index * saved.window_rows;
  if (saved.rows != nullptr)
    pack_rows(static_cast<T*>(saved.rows) + window * x.parts() * x.row,
              task.rows + (c.position - c.overhang) * x.ld, x.ld, x.parts(), x, c.rows());
  if (saved.signals != nullptr) {
    T* dst = static_cast<T*>(saved.signals) + window * x.sets * x.row;
    for (int64_t i = 0; i < c.rows(); ++i)
      for (int set = 0; set < x.sets; ++set) {
        const T* src = x.sz.deep() ? task.signals.hidden.z[set] : task.signals.d[0];
        __builtin_memcpy(dst + (i * x.sets + set) * x.row, src + i * x.rp, x.row * sizeof(T));
      }
  }
  for (int64_t t = 0; t < c.tokens; ++t) {
    if (saved.reads != nullptr)
      pack_rows(static_cast<T*>(saved.reads) + (row + t * heads) * x.sets * x.row,
                task.reads + t * x.wide, x.wide, x.sets, x, 1);
    if (saved.normalizers != nullptr)
      static_cast<T*>(saved.normalizers)[row + t * heads] = task.sum[t];
  }
}

template <class T>
void store_reference(const ExpOmegaForward& args, const ExpTask<T>& task, const ExpSizes& x,
                     int64_t n, int64_t head, int64_t count) {
  const int64_t heads = args.options.omega.heads;
  store_sets(args.reference, task.reference_rows, task.reference_ld, x, n, head, heads, count,
             args.capacity, task.line);
  if (x.sz.deep())
    store_state(args.chunk_weights, task.reference_weights, x.sz, n * heads + head, task.line);
}

// The final state but for what M_ref is.
template <class T>
void store_final(const ExpOmegaForward& args, const ExpTask<T>& task, const ExpSizes& x, int64_t n,
                 int64_t head, int64_t count) {
  const OmegaOptions& options = args.options.omega;
  const OmegaInputs& in = args.in.omega;
  const OmegaSequence& sequence = in.sequences[n];
  const int64_t heads = options.heads, key = x.sz.key, item = n * heads + head;
  T* line = task.line;
  store_sets(args.coefficients, task.rows, x.ld, x, n, head, heads, count, args.capacity, line);
  if (x.momentum)
    store_sets(args.momentum, task.rows + x.wide, x.ld, x, n, head, heads, count, args.capacity,
               line);
  fill_zero(line, x.sz.kp);
  for (int64_t j = 0; args.keys.data != nullptr && j < args.capacity; ++j)
    store_array(args.keys, ((n * args.capacity + j) * heads + head) * key,
                j < count ? task.keys.rows + j * x.sz.kp : line, key);
  if (x.sz.deep()) {
    const MatrixSizes& last = x.sz.matrix[x.sz.last()];
    store_state(args.weights, task.weights, x.sz, item, line);
    if (args.weights_momentum.data != nullptr)
      store_matrix(args.weights_momentum, task.momentum + last.at, last, item, line);
  }
  store_tail(args.k_tail, in.k, in.k_tail, sequence, options, n, head, key, line);
  store_tail(args.v_tail, in.v, in.v_tail, sequence, options, n, head, x.sz.value, line);
}

template <class T>
void forward_item(const ExpOmegaForward& args, const ExpSizes& x, ExpTask<T>& task, int64_t n,
                  int64_t head) {
  const OmegaOptions& options = args.options.omega;
  const OmegaSequence& sequence = args.in.omega.sequences[n];
  const int64_t length = sequence.end - sequence.begin, heads = options.heads;
  const bool final = args.capacity >= 0;
  const bool closes = (sequence.position + length) % options.chunk_size == 0;
  begin_sequence(task, args.in, x, n, head);
  int64_t index = sequence.first_checkpoint * heads + head;
  for (int64_t first = 0, tokens; first < length; first += tokens, index += heads) {
    tokens = chunk_tokens(sequence, first, options.chunk_size);
    const bool ends = first + tokens == length;
    if (ends && final && !closes)
      store_reference(args, task, x, n, head, sequence.position + first);
    save_start(args.saved, task, x, index);
    compute_chunk(task, args.options, args.in, x, n, head, first, tokens,
                  !ends || final || args.saved.rows != nullptr);
    const int64_t row =
        (sequence.batch * args.in.omega.tokens + sequence.begin + first) * heads + head;
    save_end(args.saved, task, x, index, row, heads);
    for (int64_t t = 0; t < tokens; ++t)
      store_array(args.o, (row + t * heads) * x.sz.value, task.y + t * x.sz.vp, x.sz.value);
  }
  if (!final) return;
  if (closes || length == 0) store_reference(args, task, x, n, head, sequence.position + length);
  store_final(args, task, x, n, head, sequence.position + length);
}

}  // namespace
}  // namespace atlas::kernels::cpu::ATLAS_ISA
