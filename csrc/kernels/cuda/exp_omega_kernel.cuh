#pragma once
// The kernel exp(scale k . x) between a chunk and its past: attention's two products, a block of
// past keys at a time (docs/math/exp_omega_rule.md, eqs. 11, 13, 14).
#include "kernels/cuda/exp_omega_work.cuh"
#include "kernels/cuda/omega_memory.cuh"

namespace atlas::kernels::cuda {

constexpr float kNoExponent = -__builtin_huge_valf();  // the maximum over no keys

// As omega_item has it. Its position is -1 where the state has no such position, or where the final
// state, which has room for `capacity` tokens (negative: none is wanted), could not hold all.
__device__ __forceinline__ OmegaItem exp_omega_item(const OmegaOptions& o, const ExpOmegaInputs& in,
                                                    int64_t index, int64_t capacity) {
  OmegaItem item = omega_item(o, in.omega, index);
  const int64_t given = in.omega.position != nullptr ? in.omega.position[item.n] : 0;
  if (given < 0 || given > in.capacity || (capacity >= 0 && given + item.length > capacity))
    item.position = -1;
  return item;
}

// NaN in `count` rows of `width`, of which the first is number `first` and the next `step` further.
__device__ __forceinline__ void store_nan(const OmegaResult& result, int width, int64_t first,
                                          int64_t step, int64_t count) {
  if (result.data == nullptr) return;
  const float nan = bits_to_float(0x7fc00000u);
  each(static_cast<int>(count), width, [&](int i, int j) {
    store_value(result.data, result.dtype, (first + i * step) * width + j, nan);
  });
}
__device__ __forceinline__ void store_nan(float* result, int width, int64_t first, int64_t step,
                                          int64_t count) {
  store_nan(OmegaResult{result, Dtype::f32}, width, first, step, count);
}

// Of a matrix [out, in] for every item.
template <class Result>
__device__ __forceinline__ void store_nan_matrix(const Result& result, const OmegaMatrix& m,
                                                 const OmegaOptions& o, const OmegaItem& item) {
  store_nan(result, m.in, (item.n * o.heads + item.head) * m.out, 1, m.out);
}

// W2's momentum where it lies, at the place of W2. Barrier by the caller.
__device__ __forceinline__ void set_momentum(Memory& rate, const OmegaOptions& o,
                                             const float* momentum) {
  const int last = last_matrix(o);
  if (thread_id() == 0) rate.matrix[last] = plain(momentum, o.sizes.matrix[last].ld);
}

// Where set `set`'s sums for the queries, and for the window, are; both have row_ld.
__device__ __forceinline__ float* query_sums(const ExpOmegaWork& w, const OmegaOptions& o,
                                             int set) {
  return is_deep(o) ? w.queries[set] : w.y;
}
__device__ __forceinline__ float* window_sums(const ExpOmegaWork& w, const OmegaOptions& o,
                                              int set) {
  return is_deep(o) ? w.z[set] : w.d[0];
}

// keys [count, kp] of the positions from `first` on: the state's, then the call's.
__device__ __forceinline__ void load_past_keys(float* keys, const OmegaOptions& o,
                                               const ExpOmegaInputs& in, const OmegaItem& item,
                                               int64_t first, int count) {
  load_rows(keys, o.sizes.kp, o.key, in.omega.k, in.keys, item, item.position,
            first - item.position, count, false);
}

// rows [count, ld] = a state's tensor [N, capacity, H, R] from token `first` on; absent: zero.
__device__ __forceinline__ void load_state_rows(float* rows, int ld, int width,
                                                const OmegaTensor& tensor, const OmegaItem& item,
                                                int64_t first, int count) {
  const int64_t at =
      item.n * tensor.stride[0] + first * tensor.stride[1] + item.head * tensor.stride[2];
  each(count, width, [&](int i, int j) {
    rows[i * ld + j] = tensor.present
                           ? load_value(tensor, at + i * tensor.stride[1] + j * tensor.stride[3])
                           : 0.0f;
  });
}

// kernel [n, kKernelLd] = the exponents scale k_j . x_i of x [n, kp] and w.keys [count, kp].
template <Arithmetic kArithmetic>
__device__ __forceinline__ void block_exponents(float* kernel, const ExpOmegaWork& w,
                                                const ExpOmegaOptions& options, const float* x,
                                                int n, int count) {
  const OmegaOptions& o = options.omega;
  product<kArithmetic>(kernel, kKernelLd, n, count, o.key, plain(x, o.sizes.kp),
                       transposed(w.keys, o.sizes.kp), {options.scale});
}

// From exponents to the kernel, not normalised. Barrier by the caller.
__device__ __forceinline__ void exponentials(float* kernel, int ld, int n, int count) {
  each(n, count, [&](int i, int j) { kernel[i * ld + j] = exponential(kernel[i * ld + j]); });
}

// Query t's row of `count` exponents, by a warp, to the kernel relative to exp(most). Those from
// `first` on are of keys not met before: where they raise the maximum, what was summed is brought
// in line.
__device__ __forceinline__ void softmax_row(float* row, int first, int count, int t,
                                            const ExpOmegaWork& w, const OmegaOptions& o) {
  float most = kNoExponent;
  for (int j = lane_id(); j < count; j += kWarp)  // a lane reads what it will write
    if (j >= first) most = row[j] > most ? row[j] : most;
  most = group_max(most);
  const float before = w.most[t], sum = w.sum[t];
  most = before > most ? before : most;
  const float factor = exponential(before - most);
  float part = 0;
  for (int j = lane_id(); j < count; j += kWarp) {
    const float value = exponential(row[j] - most);
    row[j] = value;
    if (j >= first) part += value;
  }
  part = group_sum(part);
  if (factor != 1) {
    const int ld = row_ld(o), width = row_width(o);
    for (int set = 0; set < row_sets(o); ++set) {
      float* const sums = query_sums(w, o, set) + t * ld;
      for (int j = lane_id(); j < width; j += kWarp) sums[j] *= factor;
    }
  }
  sync_warp();  // all lanes have read what lane 0 writes
  if (lane_id() != 0) return;
  w.most[t] = most;
  w.sum[t] = sum * factor + part;
}

// use(t) for t < n, by a warp each.
template <class Use>
__device__ __forceinline__ void each_warp(int n, const Use& use) {
  for (int t = thread_id() / kWarp; t < n; t += block_threads() / kWarp) use(t);
}

// What the chunk does to all rows before it, eq. (12) at its end: (b, S) -> (m b - s S, p S).
struct RowMove {
  float m, s, p;
};

__device__ __forceinline__ RowMove row_move(const OmegaWork& w) {
  const int last = w.chunk.tokens - 1;
  return {w.m[last], w.s[last], w.p[last]};
}

// w.block and w.rates [count, ld] = set `set` of the past rows from `first` on, which move on where
// they lie if `moves`. Barrier by the caller.
__device__ __forceinline__ void load_past_rows(const ExpOmegaWork& w, const OmegaOptions& o,
                                               int set, int64_t first, int count, bool moves,
                                               const RowMove& move) {
  const int ld = row_ld(o), width = row_width(o), row = static_cast<int>(past_ld(o));
  const int rate = row_sets(o) * width;
  float* const past = w.past + first * row + set * width;
  each(count, width, [&](int i, int j) {
    float* const at = past + i * row + j;
    const float b = at[0];
    w.block[i * ld + j] = b;
    if (!o.momentum) {
      if (moves) at[0] = move.m * b;
      return;
    }
    const float s = at[rate];
    w.rates[i * ld + j] = s;
    if (!moves) return;
    at[0] = move.m * b - move.s * s;
    at[rate] = move.p * s;
  });
}

}  // namespace atlas::kernels::cuda
