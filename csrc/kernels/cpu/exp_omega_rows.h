// Rows of the exponential Omega rule: sizes, the window's kernel, and what is read from and written
// to tensors (docs/math/exp_omega_rule.md). Included by kernel bodies after isa_begin.h.
#pragma once
#include "kernels/cpu/exp_omega_kernel.h"
#include "kernels/cpu/exp_omega_rule.h"
#include "kernels/cpu/omega_io.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// A token's rows stand side by side: b, or b and bg, each `rp` wide, then their momenta.
struct ExpSizes {
  Sizes sz;  // a linear memory has a state of size 0
  int sets;
  int64_t row, rp;   // R of docs/math, and rounded up
  int64_t wide, ld;  // of all sets; with their momenta
  int64_t most_rows, most_chunks, most_tokens;
  bool momentum;

  int parts() const { return momentum ? 2 * sets : sets; }
};

// Tokens of the chunk that starts at token `first` of this call; chunks that a sequence has.
inline int64_t chunks_of(const OmegaSequence& sequence, int64_t chunk_size) {
  const int64_t length = sequence.end - sequence.begin;
  return length == 0 ? 0 : (sequence.position % chunk_size + length - 1) / chunk_size + 1;
}

template <class T>
inline ExpSizes exp_sizes(const ExpOmegaOptions& options, const ExpOmegaInputs& in) {
  ExpSizes x;
  x.sz = sizes_of<T>(options.omega, in.omega);
  if (!x.sz.deep()) x.sz.state = 0;
  x.sets = options.sets();
  x.row = options.row();
  x.rp = padded<T>(x.row);
  x.momentum = static_cast<bool>(in.omega.log_theta);
  x.wide = x.sets * x.rp;
  x.ld = x.parts() * x.rp;
  x.most_rows = x.most_chunks = x.most_tokens = 1;
  for (int64_t n = 0; n < in.omega.num_sequences; ++n) {
    const OmegaSequence& sequence = in.omega.sequences[n];
    const int64_t length = sequence.end - sequence.begin;
    x.most_rows = larger(x.most_rows, sequence.position + length);
    x.most_tokens = larger(x.most_tokens, length);
    x.most_chunks = larger(x.most_chunks, chunks_of(sequence, options.omega.chunk_size));
  }
  return x;
}

template <class T>
inline Keys<T> take_keys(Arena<T>& arena, const ExpSizes& x, double scale) {
  const int64_t blocks = (x.most_rows + kKeyBlock - 1) / kKeyBlock;
  T* rows = arena.take(x.most_rows * x.sz.kp);
  return {rows, arena.take(blocks * x.sz.key * kKeyBlock), x.sz.key, x.sz.kp,
          static_cast<T>(scale)};
}

// All keys that any token of this call can see.
template <class T>
inline void load_keys(const Keys<T>& keys, const ExpOmegaInputs& in, const ExpSizes& x, int64_t n,
                      int64_t head) {
  const OmegaSequence& sequence = in.omega.sequences[n];
  const int64_t length = sequence.end - sequence.begin;
  for (int64_t j = 0; j < sequence.position; ++j)
    load_row(keys.rows + j * x.sz.kp, x.sz.kp, in.keys, n, j, head, x.sz.key);
  for (int64_t t = 0; t < length; ++t)
    load_row(keys.rows + (sequence.position + t) * x.sz.kp, x.sz.kp, in.omega.k, sequence.batch,
             sequence.begin + t, head, x.sz.key);
  transpose_keys(keys, sequence.position + length);
}

// rows [count, ld]: one part for each set, from `src`; absent: zero.
template <class T>
inline void load_sets(T* rows, int64_t ld, const Strided* src, const ExpSizes& x, int64_t n,
                      int64_t head, int64_t first, int64_t count) {
  for (int64_t j = 0; j < count; ++j)
    for (int set = 0; set < x.sets; ++set) {
      T* part = rows + j * ld + set * x.rp;
      if (src[set])
        load_row(part, x.rp, src[set], n, first + j, head, x.row);
      else
        fill_zero(part, x.rp);
    }
}

// Rows and momenta of a state.
template <class T>
inline void load_rows(T* rows, const Strided* coefficients, const Strided* momentum,
                      const ExpSizes& x, int64_t n, int64_t head, int64_t first, int64_t count) {
  load_sets(rows, x.ld, coefficients, x, n, head, first, count);
  if (x.momentum) load_sets(rows + x.wide, x.ld, momentum, x, n, head, first, count);
}

// dst, each [N, capacity, H, R], rows [0, count) of one head; rows [count, capacity) become zero.
template <class T>
inline void store_sets(const MutableArray* dst, const T* rows, int64_t ld, const ExpSizes& x,
                       int64_t n, int64_t head, int64_t heads, int64_t count, int64_t capacity,
                       T* line) {
  fill_zero(line, x.rp);
  for (int set = 0; set < x.sets && dst[set].data != nullptr; ++set)
    for (int64_t j = 0; j < capacity; ++j)
      store_array(dst[set], ((n * capacity + j) * heads + head) * x.row,
                  j < count ? rows + j * ld + set * x.rp : line, x.row);
}

// Saved rows have no padding: [count, parts, R] at `dst`.
template <class T>
inline void pack_rows(T* dst, const T* rows, int64_t ld, int parts, const ExpSizes& x,
                      int64_t count) {
  for (int64_t j = 0; j < count; ++j)
    for (int part = 0; part < parts; ++part)
      __builtin_memcpy(dst + (j * parts + part) * x.row, rows + j * ld + part * x.rp,
                       x.row * sizeof(T));
}

template <class T>
inline void unpack_rows(T* rows, int64_t ld, const T* src, int parts, const ExpSizes& x,
                        int64_t count) {
  for (int64_t j = 0; j < count; ++j)
    for (int part = 0; part < parts; ++part) {
      T* row = rows + j * ld + part * x.rp;
      __builtin_memcpy(row, src + (j * parts + part) * x.row, x.row * sizeof(T));
      fill_zero(row + x.row, x.rp - x.row);
    }
}

// The kernel between a chunk's queries and its window's rows, whose keys are those of the sequence.
template <class T>
struct Near {
  T* columns;       // [key, rp of Sizes] keys, transposed
  T* kernel;        // [tokens, rp]; zero beyond what a token sees, up to its causal limit
  T* coefficients;  // [tokens, rp] -Cf kernel

  Near(Arena<T>& arena, const Sizes& sz) {
    columns = arena.take(sz.key * sz.rp);
    kernel = arena.take(sz.chunk * sz.rp);
    coefficients = arena.take(sz.chunk * sz.rp);
  }
};

// Relative to exp(most), which `running` gets with the sums; or relative to exp(shift); or neither.
// rows [c.rows(), kp] are the keys.
template <class T>
inline void near_kernel(const Near<T>& near, const Chunk<T>& c, const Sizes& sz,
                        const Keys<T>& keys, const T* rows, const Running<T>& running,
                        const T* shift) {
  transpose_scaled(near.columns, sz.rp, keys, rows, c.rows());
  causal_scores(near.kernel, c, sz, c.q, sz.kp, sz.key, near.columns);
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int64_t seen = c.overhang + t + 1, limit = causal_limit(c, t);
    T* row = near.kernel + t * sz.rp;
    T* coefficients = near.coefficients + t * sz.rp;
    const T* cf = c.cf + t * sz.rp;
    T from = shift == nullptr ? T(0) : shift[t];
    if (running.most != nullptr) from = running.most[t] = row_most(row, seen);
    kernel_row(row, seen, from);
    fill_zero(row + seen, limit - seen);
    if (running.sum != nullptr) running.sum[t] = row_sum(row, seen);
    for (int64_t i = 0; i < limit; ++i) coefficients[i] = -cf[i] * row[i];
  }
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
