// One token of the Omega rule: the window's rows and their error signals. Vectors of the window
// stand in columns, [width, rp], so that the state is never transposed. Included by
// omega_update.inc.h.
#pragma once
#include "kernels/cpu/activation.h"
#include "kernels/cpu/arena.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/newton_schulz_tile.h"
#include "kernels/cpu/omega_update.h"
#include "kernels/cpu/poly_row.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

// Rows of a matrix that are worked on at a time: their gradient stays in the first cache.
constexpr int64_t kStateRows = 12;

template <class T>
struct UpdateTask {
  int64_t window, kp, dp, fp, rp;
  T* k;                 // [W, kp] keys of the window, oldest first; the query behind them
  T* x;                 // [W + 1, dp] phi of them, zero-padded
  T* xt;                // [D, rp] phi(k) transposed
  T* values;            // [W, V]
  T* targets;           // [V, rp] values, less the raw keys under the residual, transposed
  T* gamma;             // [rp], oldest first, zero-padded
  T *z[2], *a, *slope;  // [F, rp] the hidden layer at M_ref: z1, z3, act(z1), act'(z1)
  T* h;                 // [F, rp] a, or a * z3
  T* ht;                // [W, fp] h transposed
  T* d[kMostMatrices];  // [out, rp] gated error signals; b = W2ᵀ e goes through the first
  T* query[3];          // [fp] z1, z3 and h of the query
  T* gradient;          // rows of G_t; all of S_t where Newton-Schulz follows
  T* o;                 // a matrix
  T* y;                 // [V]
  T* monomials;
  T* ns;

  UpdateTask(Arena<T>& arena, const OmegaOptions& options) {
    const int64_t width = kWidth<T>, features = options.features(), value = options.value_dim;
    const bool ns_inside = options.ns.steps > 0;
    window = options.window;
    kp = padded<T>(options.key_dim);
    dp = padded<T>(features);
    fp = padded<T>(options.hidden);
    rp = padded<T>(window);
    k = arena.take((window + 1) * kp + width);
    x = options.degree == 0 ? k : arena.take((window + 1) * dp + width);
    xt = arena.take(features * rp);
    values = arena.take(window * value);
    targets = arena.take(value * rp);
    gamma = arena.take(rp);
    int64_t matrix = 0, scratch = 0;
    for (int l = 0; l < options.matrices; ++l) {
      const int64_t rows = options.rows_of(l), cols = options.cols_of(l);
      d[l] = arena.take(rows * rp);
      matrix = larger(matrix, (ns_inside ? rows : smaller(rows, kStateRows)) * padded<T>(cols));
      if (ns_inside)
        scratch = larger(scratch, newton_schulz_scratch<T>(rows, cols, options.ns.steps, false));
    }
    gradient = arena.take(matrix);
    o = ns_inside ? arena.take(matrix) : nullptr;
    ns = ns_inside ? arena.take(scratch) : nullptr;
    y = arena.take(value);
    monomials = arena.take(poly_monomials_scratch<T>(options.key_dim, options.degree));
    if (!options.deep()) return;
    for (T*& rows : z) rows = arena.take(options.hidden * rp);
    a = arena.take(options.hidden * rp);
    slope = arena.take(options.hidden * rp);
    h = options.matrices > 2 ? arena.take(options.hidden * rp) : a;
    ht = arena.take(window * fp);
    for (T*& row : query) row = arena.take(fp);
  }
};

template <class T>
T* state_matrix(const StridedState& state, int64_t slot, int64_t head) {
  return static_cast<T*>(state.array.data) + slot * state.stride[0] + head * state.stride[1];
}

template <class T>
T scalar(const Strided& gate, int64_t m, int64_t head) {
  T value = 0;
  load_array(&value, gate.array, gate.at(m, head), 1, 1);
  return value;
}

template <class T>
T decay(const Strided& log, int64_t m, int64_t head) {
  if (!log) return T(1);
  const T value = scalar<T>(log, m, head);
  return sizeof(T) == 4 ? __builtin_expf(value) : __builtin_exp(value);
}

// Loads the window's `rows` last tokens, the newest from the inputs, and the query as row `rows`.
template <class T>
void load_window(const UpdateTask<T>& task, const OmegaUpdate& args, const PolyMap<T>& map,
                 int64_t m, int64_t head, int64_t rows) {
  const OmegaOptions& options = args.options;
  const int64_t slot = args.slots[m], features = options.features();
  const Strided k_tail = args.k_tail.read(), v_tail = args.v_tail.read();
  fill_zero(task.k, (rows + 1) * task.kp + kWidth<T>);
  for (int64_t i = 0; i + 1 < rows; ++i) {
    const int64_t tail = task.window - rows + i;
    load_array(task.k + i * task.kp, k_tail.array, k_tail.at(slot, tail, head), options.key_dim, 1);
    load_array(task.values + i * options.value_dim, v_tail.array, v_tail.at(slot, tail, head),
               options.value_dim, 1);
  }
  load_array(task.k + (rows - 1) * task.kp, args.k.array, args.k.at(m, head), options.key_dim,
             args.k.stride[2]);
  load_array(task.values + (rows - 1) * options.value_dim, args.v.array, args.v.at(m, head),
             options.value_dim, args.v.stride[2]);
  load_array(task.k + rows * task.kp, args.q.array, args.q.at(m, head), options.key_dim,
             args.q.stride[2]);
  load_array(task.gamma, args.gamma.array,
             args.gamma.at(m, head) + (rows - 1) * args.gamma.stride[2], rows,
             -args.gamma.stride[2]);
  fill_zero(task.gamma + rows, task.rp - rows);
  if (options.degree == 0) return;
  for (int64_t i = 0; i <= rows; ++i)
    poly_row(task.x + i * task.dp, task.k + i * task.kp, map, task.monomials);
  for (int64_t i = 0; i <= rows; ++i)
    fill_zero(task.x + i * task.dp + features, task.dp - features);
}

template <class T>
Operand<T> state_operand(const StridedState& state, int64_t slot, int64_t head, bool transpose) {
  const T* data = state_matrix<T>(state, slot, head);
  return transpose ? transposed(data, state.stride[2]) : plain(data, state.stride[2]);
}

// The hidden layer of the window's rows at M_ref.
template <class T>
void window_hidden(const UpdateTask<T>& task, const OmegaUpdate& args, int64_t slot, int64_t head,
                   int64_t rows) {
  const OmegaOptions& options = args.options;
  const int64_t hidden = options.hidden, size = hidden * task.rp;
  for (int l = 0; l + 1 < options.matrices; ++l)
    gemm(hidden, rows, options.features(),
         state_operand<T>(args.chunk_weights[l], slot, head, false), task.xt, task.rp, task.z[l],
         task.rp);
  each_activated(options.activation, task.z[0], size, [&](int64_t i, Activated<T> act) {
    store(task.a + i, act.value);
    store(task.slope + i, act.slope);
  });
  for (int64_t i = 0; options.matrices > 2 && i < size; ++i) task.h[i] = task.a[i] * task.z[1][i];
  transpose(task.ht, task.fp, task.h, task.rp, hidden, rows);
}

// Fills task.d with the gated error signals of every matrix: G_t = sum_i d_i input_iᵀ.
template <class T>
void window_signals(const UpdateTask<T>& task, const OmegaUpdate& args, int64_t slot, int64_t head,
                    int64_t rows) {
  const OmegaOptions& options = args.options;
  const int64_t value = options.value_dim, hidden = options.hidden;
  const int last = options.matrices - 1;
  T* e = task.d[last];
  if (options.l2 || options.deep())
    transpose(task.xt, task.rp, task.x, task.dp, rows, options.features());
  if (options.deep()) window_hidden(task, args, slot, head, rows);
  if (options.l2)
    gemm(value, rows, options.cols_of(last),
         state_operand<T>(args.chunk_weights[last], slot, head, false),
         options.deep() ? task.h : task.xt, task.rp, e, task.rp);
  else
    fill_zero(e, value * task.rp);
  transpose(task.targets, task.rp, task.values, value, rows, value);
  if (options.l2 && options.residual)
    for (int64_t j = 0; j < value; ++j)
      for (int64_t i = 0; i < rows; ++i) task.targets[j * task.rp + i] -= task.k[i * task.kp + j];
  for (int64_t j = 0; j < value; ++j)
    for (int64_t i = 0; i < padded<T>(rows); i += kWidth<T>) {
      T* error = e + j * task.rp + i;
      store(error, load(task.gamma + i) * (load(error) - load(task.targets + j * task.rp + i)));
    }
  if (!options.deep()) return;
  gemm(hidden, rows, value, state_operand<T>(args.chunk_weights[last], slot, head, true), e,
       task.rp, task.d[0], task.rp);
  for (int64_t i = 0; i < hidden * task.rp; ++i) {
    const T b = task.d[0][i];
    task.d[0][i] = b * task.slope[i];
    if (options.matrices == 2) continue;
    task.d[0][i] *= task.z[1][i];
    task.d[1][i] = b * task.a[i];
  }
}

// The tail's last slots = the window's rows [rows, ld], the newest last: what was loaded from it
// goes back one slot earlier. Slots before the sequence's start stay as they are.
template <class T>
void store_tail(const StridedState& tail, int64_t slot, int64_t head, int64_t slots, int64_t width,
                const T* window, int64_t ld, int64_t rows) {
  for (int64_t i = larger(0, rows - slots); i < rows; ++i)
    store_array(tail.array,
                slot * tail.stride[0] + (slots - rows + i) * tail.stride[1] + head * tail.stride[2],
                window + i * ld, width);
}

}  // namespace
}  // namespace atlas::kernels::cpu::ATLAS_ISA
