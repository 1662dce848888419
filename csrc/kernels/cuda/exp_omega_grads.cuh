#pragma once
// Buffers of the exponential rule's backward pass, beside those of the Omega rule (omega_grads.cuh)
// and of a walk over the past (exp_omega_work.cuh).
#include "kernels/cuda/exp_omega_work.cuh"
#include "kernels/cuda/omega_grads.cuh"

namespace atlas::kernels::cuda {

// Like OmegaGrads, in shared memory itself. Queries stand behind the chunk's window rows, so that
// one product serves both: w.q behind w.k, q behind k, queries (of a linear memory y) behind d.
struct ExpOmegaGrads : OmegaGrads {
  // Of a sequence, in device memory.
  float* past;      // [most_rows, parts, R] b (bg) and momenta; in: after the chunk, out: before it
  float* keys;      // [most_rows, kp] keys as the rows have them; behind them [W-1, kp] k_tail
  float* values;    // [W-1 + most_rows, vp] v_tail, and behind it the call's v
  float* moves;     // [most chunks, 3] m, s, p of each chunk's end
  float* products;  // [most chunks, 3] of the moves from chunk i up to this one, eq. (18)
  // Of a chunk.
  float* k;          // [rows + chunk, kp] the window's keys in z(k_i), then the queries
  float* near_keys;  // [rows, kp] not a gradient: the window's keys as the rows have them
  float* factor;     // [rows + chunk] of the rows in (13), 1, and in the first term of (14), m_t
  float* centre;     // [chunk] gu_t . u_t
  // Of a block of keys.
  float* by;           // [rows + chunk, kKernelLd] grad_z . b, then the gradient of the exponents
  float* by_momentum;  // [chunk, kKernelLd] grad_z . S
  float* row_moves;    // [3, kKeyBlock] eq. (18), m, s, p of each row
  int64_t* saved_at;   // [kKeyBlock] where saved.rows has it; negative: it is the state's
};

// That a sequence may have in this call.
__host__ __device__ __forceinline__ int64_t most_chunks(const ExpOmegaOptions& options) {
  return options.most_rows / options.omega.chunk_size + 2;
}

__host__ __device__ __forceinline__ void take_sequence_grads(ExpOmegaGrads& g, OmegaArena& arena,
                                                             const ExpOmegaOptions& options) {
  const OmegaOptions& o = options.omega;
  const int64_t all = options.most_rows + o.window - 1;
  g.past = arena.take_device(options.most_rows * past_ld(o));
  g.keys = arena.take_device(all * o.sizes.kp);
  g.values = arena.take_device(all * o.sizes.vp);
  g.moves = arena.take_device(3 * most_chunks(options));
  g.products = arena.take_device(3 * most_chunks(options));
}

// True if all but what grows with the sequence is in shared memory; what every block of keys needs
// is first. `own_reference`: M_ref is an argument.
__host__ __device__ __forceinline__ bool take_exp_backward(ExpOmegaWork& w, ExpOmegaGrads& g,
                                                           OmegaArena& arena,
                                                           const ExpOmegaOptions& options,
                                                           bool own_reference) {
  const OmegaOptions& o = options.omega;
  const OmegaSizes& sz = o.sizes;
  const int64_t chunk = o.chunk, rows = sz.rows, both = chunk + rows, pairs = chunk * sz.rp;
  w = ExpOmegaWork();
  g = ExpOmegaGrads();
  take_common(w, arena, o);
  for (float** gates : {&g.p, &g.s, &g.m, &g.alpha, &g.theta, &g.eta}) *gates = arena.take(chunk);
  g.a_last = arena.take(sz.rp);
  g.factor = arena.take(both);
  g.centre = arena.take(chunk);
  g.row_moves = arena.take(3 * kKeyBlock);
  g.saved_at = reinterpret_cast<int64_t*>(arena.take(2 * kKeyBlock));
  take_walk(w, arena, o);
  g.by = arena.take(both * kKernelLd);
  w.k = arena.take(both * sz.kp);
  for (int l = 0; l < row_sets(o); ++l) g.d[l] = arena.take(both * row_ld(o));
  g.by_momentum = o.momentum ? arena.take(chunk * kKernelLd) : nullptr;
  g.k = arena.take(both * sz.kp);
  for (int l = 0; l < o.matrices; ++l) w.d[l] = arena.take(rows * sz.matrix[l].ld);
  w.a = arena.take(pairs);
  w.cf = arena.take(pairs);
  w.scores = arena.take(pairs);
  g.cf = arena.take(pairs);
  g.scores = arena.take(pairs);
  g.pair = arena.take(pairs);
  for (float*& pair : g.pairs) pair = g.pair;
  g.last_scores = g.scores;
  g.other = arena.take(pairs);
  g.near_keys = arena.take(rows * sz.kp);
  if (is_deep(o)) {
    const OmegaMatrix& last = sz.matrix[last_matrix(o)];
    const int64_t widest = rows * larger(sz.vp, sz.fp);
    w.weights = arena.take(sz.state);
    g.weights = arena.take(sz.state);
    if (o.momentum) g.momentum = arena.take(static_cast<int64_t>(last.in) * last.ld);
    take_hidden(w, arena, o);
    for (int l = 0; l < sz.first_layer; ++l) w.z[l] = arena.take(rows * sz.fp);
    g.y = arena.take(chunk * sz.vp);
    g.d[last_matrix(o)] = arena.take(rows * sz.vp);
    g.h = arena.take(rows * sz.fp);
    g.query_h = arena.take(chunk * sz.fp);
    g.wide = arena.take(widest);
    g.wide2 = arena.take(widest);
    if (own_reference) g.reference = arena.take(sz.state);
  }
  if (options.normalize == ExpNormalize::rms) w.y = arena.take(chunk * sz.vp);
  const bool on_chip = arena.device_used == 0;
  take_sequence_grads(g, arena, options);
  return on_chip;
}

}  // namespace atlas::kernels::cuda
