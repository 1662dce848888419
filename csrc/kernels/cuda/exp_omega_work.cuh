#pragma once
// The buffers of a block of the exponential Omega rule, beside those of the Omega rule
// (omega_work.cuh). What grows with the sequence is in device memory.
#include "kernels/cuda/exp_omega_rule.h"
#include "kernels/cuda/omega_work.cuh"

namespace atlas::kernels::cuda {

constexpr int kKeyBlock = 64;  // past keys that a block of threads meets at a time
constexpr int kKernelLd = kKeyBlock + 4;

// Rows of one token; numbers of a token's row; rows and their momenta.
__host__ __device__ __forceinline__ int row_sets(const OmegaOptions& o) {
  return is_gated(o) ? 2 : 1;
}
__host__ __device__ __forceinline__ int row_width(const OmegaOptions& o) {
  return is_deep(o) ? o.hidden : o.value;
}
__host__ __device__ __forceinline__ int row_parts(const OmegaOptions& o) {
  return o.momentum ? 2 * row_sets(o) : row_sets(o);
}
// Leading dimension of a set's buffers: error signals, sums, rows of a block.
__host__ __device__ __forceinline__ int row_ld(const OmegaOptions& o) {
  return is_deep(o) ? o.sizes.fp : o.sizes.vp;
}
// Floats of a token in `past`.
__host__ __device__ __forceinline__ int64_t past_ld(const OmegaOptions& o) {
  return static_cast<int64_t>(row_parts(o)) * row_width(o);
}
// Whether the error signals depend on what the memory answers.
__host__ __device__ __forceinline__ bool reads_window(const OmegaOptions& o) {
  return o.l2 || is_deep(o);
}

// Like OmegaWork, in shared memory itself. A state has W2 first, and its momentum is W2's alone.
struct ExpOmegaWork : OmegaWork {
  float* past;        // [most_rows, parts, R] b (bg) of every token so far, then their momenta
  float* keys;        // [kKeyBlock, kp] keys of a block
  float* block;       // [kKeyBlock, ld] rows of a block, one set of them
  float* rates;       // [kKeyBlock, ld] their momenta
  float* kernel;      // [rows + chunk, kKernelLd] exp(scale k_j . x) of the window, of the queries
  float *most, *sum;  // [chunk] running maximum of the exponents, sum of the kernel
};

// What every walk over a sequence's past has; the sums over it are OmegaWork's z and y or queries.
__host__ __device__ __forceinline__ void take_walk(ExpOmegaWork& w, OmegaArena& arena,
                                                   const OmegaOptions& o) {
  const int64_t floats = static_cast<int64_t>(kKeyBlock) * row_ld(o);
  w.most = arena.take(o.chunk);
  w.sum = arena.take(o.chunk);
  w.keys = arena.take(static_cast<int64_t>(kKeyBlock) * o.sizes.kp);
  w.kernel = arena.take(static_cast<int64_t>(o.sizes.rows + o.chunk) * kKernelLd);
  w.block = arena.take(floats);
  w.rates = o.momentum ? arena.take(floats) : nullptr;
}

// The forward's buffers; true if all but the past are in shared memory.
__host__ __device__ __forceinline__ bool take_exp_forward(ExpOmegaWork& w, OmegaArena& arena,
                                                          const ExpOmegaOptions& options) {
  const OmegaOptions& o = options.omega;
  const OmegaSizes& sz = o.sizes;
  const int64_t chunk = o.chunk, rows = sz.rows;
  w = ExpOmegaWork();
  take_common(w, arena, o);
  // The queries stand behind the window's keys, so that one product serves both.
  w.k = arena.take((rows + chunk) * sz.kp);
  take_walk(w, arena, o);
  w.y = arena.take(chunk * sz.vp);
  for (int l = 0; l < o.matrices; ++l) w.d[l] = arena.take(rows * sz.matrix[l].ld);
  w.z[0] = w.d[0];
  w.z[1] = w.d[1];
  w.a = arena.take(sz.rp);
  const int64_t pairs = chunk * sz.rp;
  w.cf = arena.take(pairs);
  // The walk is over when scores come.
  w.scores = pairs <= (rows + chunk) * kKernelLd ? w.kernel : arena.take(pairs);
  if (is_deep(o)) {
    const OmegaMatrix& last = sz.matrix[last_matrix(o)];
    w.weights = arena.take(sz.state);
    w.momentum = o.momentum ? arena.take(static_cast<int64_t>(last.in) * last.ld) : nullptr;
    take_hidden(w, arena, o);
  }
  const bool on_chip = arena.device_used == 0;
  w.past = arena.take_device(options.most_rows * past_ld(o));
  return on_chip;
}

}  // namespace atlas::kernels::cuda
