#pragma once
// A token's walk over the past of its sequence and head (docs/math/exp_omega_rule.md, section 4):
// the state's keys and rows are read once, where they lie, by blocks that share them out, each of
// which leaves its sums as `partial` for the block that finishes the token. A block takes 64 keys
// at a time to shared memory; the kernel of those and of up to eight window keys is one thread's.
// Then a thread takes a column: of the reference rows for eight window rows, eq. (13); or of the
// rows and momenta, which the query reads, eq. (14), and which are moved on the way, eq. (12).
// Several threads share the keys of a column where columns are few.
#include "kernels/cuda/exp_omega_kernel.cuh"
#include "kernels/cuda/exp_omega_update.h"
#include "kernels/cuda/omega_update.cuh"

namespace atlas::kernels::cuda {

constexpr int kWalkBatch = 4;   // rows that a thread loads at a time
constexpr int kMostShares = 8;  // of a block's keys, a whole number of batches each
constexpr int kWalkBlocks = 4;  // on a multiprocessor, where few sequences leave room

// One block's share of a walk; in shared memory beside OmegaWork.
struct ExpWalk {
  int64_t begin, end;       // keys of this block
  int64_t far;              // keys before the window: the query reads them here, and they are moved
  float alpha, push, keep;  // m, s, p of the token
  float most, sum, factor;  // of the read's kernel: maximum, sum; by what the last keys scaled it
  float *queries, *keys;    // [rows + 1, kp] the window's keys and the query; [kKeyBlock, kp]
  float* kernel;            // [kKeyBlock, kernel_ld] exp(scale k_j . x), the query last
  float* sums;              // [shares, sums]
};

__host__ __device__ __forceinline__ void take_walk(OmegaWork& w, ExpWalk& walk, OmegaArena& arena,
                                                   const OmegaOptions& o,
                                                   const ExpWalkSizes& sizes) {
  w = OmegaWork();
  w.k = arena.take((static_cast<int64_t>(o.sizes.rows) + 1) * o.sizes.kp);
  walk.keys = arena.take(static_cast<int64_t>(kKeyBlock) * o.sizes.kp);
  walk.kernel = arena.take(static_cast<int64_t>(kKeyBlock) * sizes.kernel_ld);
  walk.sums = arena.take(static_cast<int64_t>(sizes.shares) * sizes.sums);
}

// Floats that a block leaves, in whole groups of four: what stands behind is aligned.
__host__ __device__ __forceinline__ int64_t partial_floats(const ExpWalkSizes& sizes) {
  return (static_cast<int64_t>(sizes.sums) + 2 + 3) / 4 * 4;
}

// A token's row in a state's tensor of floats [N, capacity, H, R].
__device__ __forceinline__ float* token_row(const OmegaTensor& tensor, const OmegaItem& item,
                                            int64_t token) {
  return static_cast<float*>(const_cast<void*>(tensor.data)) + item.n * tensor.stride[0] +
         token * tensor.stride[1] + item.head * tensor.stride[2];
}

// Where the token's key stands in the state.
__device__ __forceinline__ int64_t key_offset(const OmegaTensor& keys, const OmegaItem& item,
                                              int64_t token) {
  return item.n * keys.stride[0] + token * keys.stride[1] + item.head * keys.stride[2];
}

// Floats that a row of keys is multiplied as: whole groups of four.
__device__ __forceinline__ int padded_key(const OmegaOptions& o) { return (o.key + 3) / 4 * 4; }

// One thread: the item's part `part` of its keys, whole blocks of them. Barrier by the caller.
__device__ __forceinline__ void begin_walk(ExpWalk& walk, const OmegaWork& w,
                                           const ExpOmegaUpdate& args, int part) {
  const OmegaItem& item = w.item;
  const int64_t position = item.position;
  walk.far = position - w.chunk.overhang;
  const int64_t all = args.walk.rows > 0 ? position : walk.far,
                each =
                    ((all + kKeyBlock - 1) / kKeyBlock + args.parts - 1) / args.parts * kKeyBlock;
  walk.begin = smaller(all, part * each);
  walk.end = smaller(all, walk.begin + each);
  walk.alpha = decay(args.omega.in.log_alpha, item, 0);
  walk.keep = args.omega.options.momentum ? decay(args.omega.in.log_theta, item, 0) : 0.0f;
  walk.push = walk.keep * load_value(args.omega.in.eta, token_offset(args.omega.in.eta, item));
  walk.most = kNoExponent;
  walk.sum = 0;
  walk.factor = 1;
  walk.queries = args.walk.rows > 0 ? w.k : w.q;
}

// Window rows that the walk sums for.
__device__ __forceinline__ int walk_rows(const OmegaWork& w, const ExpOmegaUpdate& args) {
  return args.walk.rows > 0 ? w.chunk.rows : 0;
}

// Barriers on both sides.
__device__ __forceinline__ void load_walk_keys(const ExpWalk& walk, const OmegaWork& w,
                                               const ExpOmegaUpdate& args, int64_t first,
                                               int count) {
  const OmegaOptions& o = args.omega.options;
  const int64_t at = key_offset(args.keys, w.item, first);
  each(count, padded_key(o), [&](int j, int c) {
    walk.keys[j * o.sizes.kp + c] =
        c < o.key ? load_value(args.keys, at + j * args.keys.stride[1] + c * args.keys.stride[3])
                  : 0.0f;
  });
}

// The kernel of `count` keys, and the query's again up to eight rows, which are read together; of a
// query whose maximum is subtracted, the exponent. Barriers on both sides.
__device__ __forceinline__ void make_kernel(const ExpWalk& walk, const OmegaWork& w,
                                            const ExpOmegaUpdate& args, int count) {
  const OmegaOptions& o = args.omega.options;
  const int kp = o.sizes.kp, rows = walk_rows(w, args), width = padded_key(o);
  const bool normalized = args.normalize == ExpNormalize::softmax;
  each(rows / kUpdateWindow + 1, count, [&](int group, int j) {
    const int i = group * kUpdateWindow;
    float sums[kUpdateWindow] = {};
    for (int c = 0; c < width; c += 4) {
      const Pack16 key = *reinterpret_cast<const Pack16*>(walk.keys + j * kp + c);
#pragma unroll
      for (int s = 0; s < kUpdateWindow; ++s) {
        const Pack16 query =
            *reinterpret_cast<const Pack16*>(walk.queries + min(i + s, rows) * kp + c);
#pragma unroll
        for (int r = 0; r < 4; ++r)
          sums[s] += bits_to_float(key.word[r]) * bits_to_float(query.word[r]);
      }
    }
#pragma unroll
    for (int s = 0; s < kUpdateWindow; ++s) {
      const float score = args.scale * sums[s];
      walk.kernel[j * args.walk.kernel_ld + i + s] =
          normalized && i + s >= rows ? score : exponential(score);
    }
  });
}

// From exponents of the query's first `count` keys to their kernel relative to the maximum so far.
// Barriers on both sides.
__device__ __forceinline__ void subtract_maximum(ExpWalk& walk, int ld, int row, int count) {
  if (thread_id() >= kWarp) return;
  const float before = walk.most;
  float most = before, sum = 0;
  for (int j = lane_id(); j < count; j += kWarp) {
    const float score = walk.kernel[j * ld + row];
    most = score > most ? score : most;
  }
  most = group_max(most);
  for (int j = lane_id(); j < count; j += kWarp)
    sum += walk.kernel[j * ld + row] = exponential(walk.kernel[j * ld + row] - most);
  sum = group_sum(sum);
  sync_warp();  // all lanes have read what lane 0 writes
  if (lane_id() != 0) return;
  walk.factor = exponential(before - most);
  walk.sum = walk.factor * walk.sum + sum;
  walk.most = most;
}

// sums, `step` apart, of the window rows [i, i + 8) += a column of the reference rows [from, to).
__device__ __forceinline__ void sum_column(float* sums, int step, const ExpWalk& walk, int ld,
                                           const float* column, int64_t stride, int from, int to,
                                           int i, int rows) {
  float sum[kUpdateWindow] = {};
  for (int j = from; j < to; j += kWalkBatch) {
    float value[kWalkBatch] = {};
#pragma unroll
    for (int b = 0; b < kWalkBatch; ++b)
      if (j + b < to) value[b] = column[(j + b) * stride];
#pragma unroll
    for (int b = 0; b < kWalkBatch; ++b) {
      if (j + b >= to) continue;
      const Pack16* const kernel = reinterpret_cast<const Pack16*>(walk.kernel + (j + b) * ld + i);
#pragma unroll
      for (int s = 0; s < kUpdateWindow; ++s)
        sum[s] += bits_to_float(kernel[s / 4].word[s % 4]) * value[b];
    }
  }
#pragma unroll
  for (int s = 0; s < kUpdateWindow; ++s)
    if (i + s < rows) sums[(i + s) * step] += sum[s];
}

// sums[0] (of rows) and sums[wide] (of momenta) = factor sums + the query's; rows [from, to) move.
__device__ __forceinline__ void read_column(float* sums, int wide, const ExpWalk& walk, int ld,
                                            int query, float* column, int64_t stride,
                                            float* momenta, int64_t momenta_stride, int from,
                                            int to, float factor) {
  const bool moves = momenta != nullptr || walk.alpha != 1.0f;
  float sum = 0, rate_sum = 0;
  for (int j = from; j < to; j += kWalkBatch) {
    float value[kWalkBatch] = {}, rate[kWalkBatch] = {};
#pragma unroll
    for (int b = 0; b < kWalkBatch; ++b) {
      if (j + b >= to) continue;
      value[b] = column[(j + b) * stride];
      if (momenta != nullptr) rate[b] = momenta[(j + b) * momenta_stride];
    }
#pragma unroll
    for (int b = 0; b < kWalkBatch; ++b) {
      if (j + b >= to) continue;
      const float kernel = walk.kernel[(j + b) * ld + query];
      sum += kernel * value[b];
      rate_sum += kernel * rate[b];
      if (moves) column[(j + b) * stride] = walk.alpha * value[b] - walk.push * rate[b];
      if (momenta != nullptr) momenta[(j + b) * momenta_stride] = walk.keep * rate[b];
    }
  }
  sums[0] = factor * sums[0] + sum;
  if (momenta != nullptr) sums[wide] = factor * sums[wide] + rate_sum;
}

// Keys [first, first + count), of which `far` come before the window. Barriers on both sides.
__device__ __forceinline__ void walk_rows_of(const ExpWalk& walk, const OmegaWork& w,
                                             const ExpOmegaUpdate& args, int64_t first, int count,
                                             int far) {
  const ExpWalkSizes& sizes = args.walk;
  const OmegaItem& item = w.item;
  const int rows = walk_rows(w, args), groups = (rows + kUpdateWindow - 1) / kUpdateWindow,
            share = kKeyBlock / sizes.shares;
  const float factor = far > 0 ? walk.factor : 1.0f;
  each(sizes.shares * (groups + 1), sizes.wide, [&](int task, int c) {
    const int number = static_cast<int>(static_cast<unsigned>(task) / (groups + 1)),
              group = task - number * (groups + 1), set = c < sizes.row ? 0 : 1,
              column = c - set * sizes.row, from = number * share;
    float* const sums = walk.sums + number * sizes.sums + c;
    if (group < groups) {
      const OmegaTensor& tensor = args.reference[set];
      sum_column(sums, sizes.wide, walk, sizes.kernel_ld, token_row(tensor, item, first) + column,
                 tensor.stride[1], from, min(from + share, count), group * kUpdateWindow, rows);
      return;
    }
    const OmegaTensor &tensor = args.coefficients[set], &momenta = args.momentum[set];
    read_column(sums + sizes.rows * sizes.wide, sizes.wide, walk, sizes.kernel_ld, rows,
                token_row(tensor, item, first) + column, tensor.stride[1],
                momenta.present ? token_row(momenta, item, first) + column : nullptr,
                momenta.stride[1], from, min(from + share, far), factor);
  });
}

// The rows [first, first + count) as they are now become reference rows.
__device__ __forceinline__ void close_rows(const OmegaWork& w, const ExpOmegaUpdate& args,
                                           int64_t first, int count) {
  const ExpWalkSizes& sizes = args.walk;
  each(count, sizes.wide, [&](int j, int c) {
    const int set = c < sizes.row ? 0 : 1, column = c - set * sizes.row;
    token_row(args.reference[set], w.item, first + j)[column] =
        token_row(args.coefficients[set], w.item, first + j)[column];
  });
}

// The item's part of the keys, into partial [sums, and maximum and sum of the read's kernel].
// Barriers on both sides.
__device__ __forceinline__ void walk_part(float* partial, ExpWalk& walk, OmegaWork& w,
                                          const OmegaStep& step, const ExpOmegaUpdate& args) {
  const OmegaOptions& o = args.omega.options;
  const OmegaInputs& in = args.omega.in;
  const ExpWalkSizes& sizes = args.walk;
  const int kp = o.sizes.kp, rows = walk_rows(w, args), slots = o.window - 1;
  load_rows(walk.queries + rows * kp, kp, o.key, in.q, in.q, w.item, slots, 0, 1, false);
  load_rows(walk.queries, kp, o.key, in.k, in.k_tail, w.item, slots, -w.chunk.overhang, rows,
            false);
  if (const int beyond = padded_key(o) - o.key; beyond > 0)
    each(rows + 1, beyond, [&](int i, int j) { walk.queries[i * kp + o.key + j] = 0; });
  each(sizes.shares * sizes.sums, [&](int i) { walk.sums[i] = 0; });
  for (int64_t first = walk.begin; first < walk.end; first += kKeyBlock) {
    const int count = static_cast<int>(smaller(kKeyBlock, walk.end - first)),
              far = static_cast<int>(smaller(count, walk.far > first ? walk.far - first : 0));
    load_walk_keys(walk, w, args, first, count);
    __syncthreads();
    make_kernel(walk, w, args, count);
    __syncthreads();
    if (args.normalize == ExpNormalize::softmax) {
      if (far > 0) subtract_maximum(walk, sizes.kernel_ld, rows, far);
      __syncthreads();
    }
    walk_rows_of(walk, w, args, first, count, far);
    __syncthreads();
    if (step.closes) close_rows(w, args, first, far);
  }
  __syncthreads();
  each(sizes.sums, [&](int i) {
    float total = 0;
    for (int number = 0; number < sizes.shares; ++number)
      total += walk.sums[number * sizes.sums + i];
    partial[i] = total;
  });
  if (thread_id() != 0) return;
  partial[sizes.sums] = walk.most;
  partial[sizes.sums + 1] = walk.sum;
}

}  // namespace atlas::kernels::cuda
