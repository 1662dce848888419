#pragma once
// One token of the exponential Omega rule for each of N sequences, in place
// (docs/math/exp_omega_rule.md, sections 2 to 4: a chunk of one token). Two launches: blocks walk
// over the past of every sequence and head (exp_omega_walk.cuh); then one block for each makes the
// error signals from their sums, reads, and writes the window's rows, the matrices and the tails.
// Of the matrices W2 moves as in omega_update.cuh, the raw-input maps only decay, and the last head
// of a sequence to read its position counts the token in it. All arithmetic is float.
#include "kernels/cuda/exp_omega_walk.cuh"

namespace atlas::kernels::cuda {

// Of the block that finishes a token; in shared memory beside OmegaWork.
struct ExpFinish {
  const float* partial;  // [parts, partial_ld] of this item
  float* near;     // [rows] the kernel of the query and the window's keys, divided under softmax
  float* factors;  // [parts] what turns the read's sums of a part into the same kernel
};

__host__ __device__ __forceinline__ void take_finish(OmegaWork& w, ExpFinish& finish,
                                                     OmegaArena& arena, const OmegaOptions& o,
                                                     int parts) {
  take_update(w, arena, o);
  finish.near = arena.take(o.sizes.rows);
  finish.factors = arena.take(parts);
}

// Adds eq. (13) from the walk's sums: for a linear memory times the gates to e, for a deep one
// after the raw-input maps' share to z. Barriers on both sides.
__device__ __forceinline__ void window_answers(const ExpFinish& finish, const OmegaWork& w,
                                               const OmegaStep& step, const ExpOmegaUpdate& args) {
  const OmegaOptions& o = args.omega.options;
  const ExpWalkSizes& sizes = args.walk;
  const int ld = row_ld(o);
  each(w.chunk.rows, sizes.wide, [&](int i, int c) {
    const int set = c < sizes.row ? 0 : 1;
    float sum = 0;
    for (int part = 0; part < args.parts; ++part)
      sum += finish.partial[part * args.partial_ld + i * sizes.wide + c];
    float* const at = w.d[set] + i * ld + c - set * sizes.row;
    *at = is_deep(o) ? sum : *at + w.a[i] * sum;
  });
  if (!is_deep(o)) return;
  __syncthreads();
  for (int l = 0; l < o.sizes.first_layer; ++l)
    window_read(w.d[l], w, step, args.omega, l, nullptr, true);
}

// The query's kernel of the window's keys, and the factors of the parts. Barriers on both sides.
__device__ __forceinline__ void query_kernel(const ExpFinish& finish, const OmegaWork& w,
                                             const ExpOmegaUpdate& args) {
  const OmegaOptions& o = args.omega.options;
  const OmegaChunk& chunk = w.chunk;
  const int rows = chunk.rows;
  const bool normalized = args.normalize == ExpNormalize::softmax;
  const int64_t first = key_offset(args.keys, w.item, w.item.position - chunk.overhang);
  for (int i = thread_id() / kWarp; i < rows; i += block_threads() / kWarp) {
    float sum = 0;
    for (int c = lane_id(); c < o.key; c += kWarp) {
      const int64_t at = first + i * args.keys.stride[1] + c * args.keys.stride[3];
      const float key = i < chunk.overhang ? load_value(args.keys, at) : w.k[i * o.sizes.kp + c];
      sum += w.q[c] * key;
    }
    const float score = args.scale * group_sum(sum);
    if (lane_id() == 0) finish.near[i] = normalized ? score : exponential(score);
  }
  const float* const extremes = finish.partial + args.walk.sums;
  each(args.parts, [&](int part) {
    finish.factors[part] = normalized ? extremes[part * args.partial_ld] : 1.0f;
  });
  if (!normalized) return;
  __syncthreads();
  if (thread_id() >= kWarp) return;
  float most = kNoExponent, sum = 0;
  const auto raise = [&](float score) { most = score > most ? score : most; };
  for (int i = lane_id(); i < rows; i += kWarp) raise(finish.near[i]);
  for (int part = lane_id(); part < args.parts; part += kWarp) raise(finish.factors[part]);
  most = group_max(most);
  for (int i = lane_id(); i < rows; i += kWarp)
    sum += finish.near[i] = exponential(finish.near[i] - most);
  for (int part = lane_id(); part < args.parts; part += kWarp) {
    const float factor = exponential(finish.factors[part] - most);
    finish.factors[part] = factor;
    sum += factor * extremes[part * args.partial_ld + 1];
  }
  const float by = 1.0f / group_sum(sum);
  for (int i = lane_id(); i < rows; i += kWarp) finish.near[i] *= by;
  for (int part = lane_id(); part < args.parts; part += kWarp) finish.factors[part] *= by;
}

// The read's kernel sums, eq. (14), added to z of the query or to y; the window's rows, their
// momenta and reference rows as they leave the token, eq. (12). Barriers on both sides.
__device__ __forceinline__ void finish_rows(const ExpFinish& finish, const OmegaWork& w,
                                            const OmegaStep& step, const ExpOmegaUpdate& args) {
  const OmegaOptions& o = args.omega.options;
  const ExpWalkSizes& sizes = args.walk;
  const OmegaItem& item = w.item;
  const OmegaChunk& chunk = w.chunk;
  const int ld = row_ld(o), rows = chunk.rows;
  const int64_t first = item.position - chunk.overhang;
  const float alpha = w.alpha[0], theta = w.theta[0], eta = w.eta[0];
  each(sizes.wide, [&](int c) {
    const int set = c < sizes.row ? 0 : 1, column = c - set * sizes.row;
    const OmegaTensor &coefficients = args.coefficients[set], &momentum = args.momentum[set],
                      &reference = args.reference[set];
    float before = 0, rate = 0, direct = 0;
    const float* part = finish.partial + sizes.rows * sizes.wide + c;
    for (int i = 0; i < args.parts; ++i, part += args.partial_ld) {
      before += finish.factors[i] * part[0];
      if (o.momentum) rate += finish.factors[i] * part[sizes.wide];
    }
    for (int i = 0; i < rows; ++i) {
      const bool known = i < chunk.overhang;  // the token's own row is new
      float* const at = token_row(coefficients, item, first + i) + column;
      const float kernel = finish.near[i], signal = w.d[set][i * ld + column],
                  old = known ? *at : 0.0f;
      float move = signal;
      before += kernel * old;
      direct += kernel * signal;
      if (o.momentum) {
        float* const moving = token_row(momentum, item, first + i) + column;
        const float moved = known ? *moving : 0.0f;
        rate += kernel * moved;
        *moving = move += theta * moved;
      }
      const float next = alpha * old - eta * move;
      *at = next;
      if (step.closes || !known)
        token_row(reference, item, first + i)[column] = step.closes ? next : 0.0f;
    }
    const float read = alpha * before - eta * (theta * rate + direct);
    if (is_deep(o))
      w.queries[set][column] += read;
    else
      w.y[column] = read;
  });
}

// o [V] from y. A barrier comes before.
__device__ __forceinline__ void write_output(const OmegaWork& w, const ExpOmegaUpdate& args) {
  const OmegaOptions& o = args.omega.options;
  const OmegaResult& result = args.omega.o;
  const int64_t at = (w.item.batch * o.heads + w.item.head) * o.value;
  float squares = 0, factor = 1;
  each(o.value, [&](int j) {
    const float y = w.y[j] + (o.residual ? w.q[j] : 0.0f);
    w.y[j] = y;
    squares += y * y;
  });
  if (args.normalize == ExpNormalize::rms)
    factor = 1.0f / square_root(block_sum(squares, w.line) / static_cast<float>(o.value) + 1e-6f);
  each(o.value, [&](int j) { store_value(result.data, result.dtype, at + j, factor * w.y[j]); });
}

// The item is in w, step and finish. A barrier comes before.
__device__ __forceinline__ void finish_item(const ExpFinish& finish, const OmegaWork& w,
                                            const OmegaStep& step, const ExpOmegaUpdate& args) {
  const OmegaUpdate& omega = args.omega;
  const OmegaOptions& o = omega.options;
  const OmegaSizes& sz = o.sizes;
  const OmegaItem& item = w.item;
  const int rows = w.chunk.rows, last = last_matrix(o), slots = o.window - 1;
  load_chunk(w, o, omega.in);
  const int64_t gamma = gamma_offset(omega.in, item, w.chunk);
  each(rows, [&](int i) { w.a[i] = band(omega.in.gamma, gamma, w.chunk, o.window, 0, i); });
  __syncthreads();
  shift_tail(omega.in.k_tail, item, slots, w.k, sz.kp, rows, o.key, 1);
  shift_tail(omega.in.v_tail, item, slots, w.d[last], sz.vp, rows, o.value, -1);
  query_kernel(finish, w, args);
  window_signals(w, step, omega, [&] { window_answers(finish, w, step, args); });
  const int64_t key = key_offset(args.keys, item, item.position);
  each(o.key, [&](int j) {
    store_value(const_cast<void*>(args.keys.data), args.keys.dtype, key + j,
                w.k[w.chunk.overhang * sz.kp + j]);
  });
  for (int l = 0; is_deep(o) && l < sz.first_layer; ++l)
    move_matrix<OmegaMove::decay>(w.queries[l], w, step, omega, l);
  __syncthreads();
  finish_rows(finish, w, step, args);
  __syncthreads();
  if (is_deep(o)) {
    hidden_layer(w.h + rows * sz.fp, w.queries[0], w.queries[1], sz.fp, 1, o);
    __syncthreads();
    move_matrix<OmegaMove::descend>(w.y, w, step, omega, last);
    __syncthreads();
  }
  write_output(w, args);
}

ATLAS_KERNEL void __launch_bounds__(kOmegaThreads)
    exp_omega_walk_kernel(ATLAS_GRID_CONSTANT const ExpOmegaUpdate args) {
  DYNAMIC_SHARED(float, shared);
  SHARED_ARRAY(OmegaWork, work, 1);
  SHARED_ARRAY(OmegaStep, steps, 1);
  SHARED_ARRAY(ExpWalk, walks, 1);
  const OmegaOptions& o = args.omega.options;
  if (thread_id() == 0) {
    OmegaArena arena = block_arena(shared, args.omega.space);
    take_walk(work[0], walks[0], arena, o, args.walk);
  }
  const int64_t places = args.omega.rows * o.heads * args.parts;
  for (int64_t place = blockIdx.x; place < places; place += gridDim.x) {
    const int64_t index = place / args.parts;
    __syncthreads();
    if (thread_id() == 0) {
      begin_step(work[0], steps[0], args.omega, index);
      if (steps[0].valid)
        begin_walk(walks[0], work[0], args, static_cast<int>(place - index * args.parts));
    }
    __syncthreads();
    if (steps[0].valid)
      walk_part(args.partial + place * args.partial_ld, walks[0], work[0], steps[0], args);
  }
}

ATLAS_KERNEL void __launch_bounds__(kOmegaThreads)
    exp_omega_finish_kernel(ATLAS_GRID_CONSTANT const ExpOmegaUpdate args) {
  DYNAMIC_SHARED(float, shared);
  SHARED_ARRAY(OmegaWork, work, 1);
  SHARED_ARRAY(OmegaStep, steps, 1);
  SHARED_ARRAY(ExpFinish, finishes, 1);
  const OmegaOptions& o = args.omega.options;
  if (thread_id() == 0) {
    OmegaArena arena = block_arena(shared, args.omega.space);
    take_finish(work[0], finishes[0], arena, o, args.parts);
  }
  __syncthreads();
  pad_signals(work[0], o);
  const int64_t items = args.omega.rows * o.heads;
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    __syncthreads();
    if (thread_id() == 0) {
      begin_step(work[0], steps[0], args.omega, index);
      finishes[0].partial = args.partial + index * args.parts * args.partial_ld;
    }
    __syncthreads();
    if (!steps[0].valid) {
      write_nan(args.omega, work[0].item);
      continue;
    }
    count_token(args.omega, work[0].item);
    finish_item(finishes[0], work[0], steps[0], args);
  }
}

}  // namespace atlas::kernels::cuda
