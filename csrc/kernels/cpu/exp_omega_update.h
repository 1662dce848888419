// One token of the exponential Omega rule, in place: a chunk of one token, whose state is read from
// where it lies and written back there; included by exp_omega_rule.inc.h.
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

template <class T>
void update_item(const ExpOmegaUpdate& args, const ExpSizes& x, ExpTask<T>& task, int64_t n,
                 int64_t head) {
  const OmegaOptions& options = args.options.omega;
  const Sizes& sz = x.sz;
  const Chunk<T>& c = task.chunk;
  const int64_t position = args.in.omega.sequences[n].position, count = position + 1;
  begin_sequence(task, args.in, x, n, head);
  compute_chunk(task, args.options, args.in, x, n, head, 0, 1, true);
  store_array(args.o, (n * options.heads + head) * sz.value, task.y, sz.value);

  const bool decays = static_cast<bool>(args.in.omega.log_alpha);
  const bool closes = count % options.chunk_size == 0;
  const int64_t moved = x.momentum || decays ? 0 : position - c.overhang;
  store_view(args.keys, task.keys.rows, sz.kp, sz.key, n, head, position, count);
  for (int set = 0; set < x.sets; ++set) {
    const T* rows = task.rows + set * x.rp;
    store_view(args.coefficients[set], rows, x.ld, x.row, n, head, moved, count);
    if (x.momentum) store_view(args.momentum[set], rows + x.wide, x.ld, x.row, n, head, 0, count);
    if (closes) {
      store_view(args.reference[set], rows, x.ld, x.row, n, head, 0, count);
    } else {
      fill_zero(task.line, x.row);
      store_view(args.reference[set], task.line, 0, x.row, n, head, position, count);
    }
  }
  for (int l = 0; sz.deep() && l < sz.matrices; ++l) {
    const T* matrix = task.weights + sz.matrix[l].at;
    if (decays || l == sz.last())
      store_matrix_view(args.weights[l], matrix, sz.matrix[l], n, head, task.line);
    if (closes) store_matrix_view(args.chunk_weights[l], matrix, sz.matrix[l], n, head, task.line);
    if (x.momentum && l == sz.last())
      store_matrix_view(args.weights_momentum, task.momentum + sz.matrix[l].at, sz.matrix[l], n,
                        head, task.line);
  }
  store_tail_view(args.k_tail, c.k, sz.kp, sz.key, c, sz.window - 1, n, head);
  store_tail_view(args.v_tail, c.values, sz.vp, sz.value, c, sz.window - 1, n, head);
}

}  // namespace
}  // namespace atlas::kernels::cpu::ATLAS_ISA
