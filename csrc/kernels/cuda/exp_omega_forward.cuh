#pragma once
// The forward pass of the exponential Omega rule: a block takes a (sequence, head) and walks
// through its chunks; nothing is exchanged between blocks. The rows of all tokens so far (w.past)
// are in the block's scratch; everything else, of one chunk and of one block of past keys, is in
// shared memory as far as it fits (exp_omega_work.cuh). Sums and rows are float.
#include "kernels/cuda/exp_omega_chunk.cuh"
#include "kernels/cuda/omega_states.cuh"

namespace atlas::kernels::cuda {

// The state's rows and matrices as the call begins. Barrier by the caller.
__device__ __forceinline__ void begin_item(const ExpOmegaWork& w, const OmegaOptions& o,
                                           const ExpOmegaInputs& in) {
  const OmegaItem& item = w.item;
  const int width = row_width(o), sets = row_sets(o), ld = static_cast<int>(past_ld(o));
  for (int64_t first = 0; first < item.position; first += kKeyBlock) {
    const int count = static_cast<int>(smaller(kKeyBlock, item.position - first));
    float* const past = w.past + first * ld;
    for (int set = 0; set < sets; ++set) {
      load_state_rows(past + set * width, ld, width, in.coefficients[set], item, first, count);
      if (o.momentum)
        load_state_rows(past + (sets + set) * width, ld, width, in.momentum[set], item, first,
                        count);
    }
  }
  if (!is_deep(o)) return;
  load_state(w.weights, in.omega.weights, o, item);
  const int last = last_matrix(o);
  if (o.momentum) load_matrix(w.momentum, in.omega.momentum[last], o, item, whole_matrix(o, last));
}

// z(k_i) of a deep memory, before they become d, or e of a linear one.
__device__ __forceinline__ void save_signals(const ExpOmegaSaved& saved, const ExpOmegaWork& w,
                                             const OmegaOptions& o, int64_t window) {
  if (saved.signals == nullptr) return;
  const int sets = row_sets(o), width = row_width(o), ld = row_ld(o);
  float* const to = saved.signals + window * sets * width;
  for (int set = 0; set < sets; ++set) {
    const float* const from = window_sums(w, o, set);
    each(w.chunk.rows, width,
         [&](int i, int j) { to[(i * sets + set) * width + j] = from[i * ld + j]; });
  }
}

// The read's divided sums, and the log of what divided them.
__device__ __forceinline__ void save_reads(const ExpOmegaSaved& saved, const ExpOmegaWork& w,
                                           const OmegaOptions& o, int64_t row) {
  const int sets = row_sets(o), width = row_width(o), ld = row_ld(o);
  for (int set = 0; saved.reads != nullptr && set < sets; ++set) {
    const float* const from = query_sums(w, o, set);
    each(w.chunk.tokens, width, [&](int t, int j) {
      const int64_t token = row + static_cast<int64_t>(t) * o.heads;
      saved.reads[(token * sets + set) * width + j] = from[t * ld + j];
    });
  }
  if (saved.normalizers == nullptr) return;
  each(w.chunk.tokens, [&](int t) {
    saved.normalizers[row + static_cast<int64_t>(t) * o.heads] = w.most[t] + logarithm(w.sum[t]);
  });
}

// w.y with the residual, divided by its root mean square where that is asked for, to o.
__device__ __forceinline__ void store_exp_output(const ExpOmegaWork& w, const ExpOmegaForward& args,
                                                 int64_t row) {
  const OmegaOptions& o = args.options.omega;
  const OmegaSizes& sz = o.sizes;
  each_warp(w.chunk.tokens, [&](int t) {
    const float *const y = w.y + t * sz.vp, *const q = w.q + t * sz.kp;
    float factor = 1;
    if (args.options.normalize == ExpNormalize::rms) {
      float sum = 0;
      for (int j = lane_id(); j < o.value; j += kWarp) {
        const float value = o.residual ? y[j] + q[j] : y[j];
        sum += value * value;
      }
      const float mean = group_sum(sum) / static_cast<float>(o.value);
      factor = reciprocal(square_root(mean + 1e-6f));
    }
    const int64_t to = (row + static_cast<int64_t>(t) * o.heads) * o.value;
    for (int j = lane_id(); j < o.value; j += kWarp) {
      const float value = o.residual ? y[j] + q[j] : y[j];
      store_value(args.o.data, args.o.dtype, to + j, factor * value);
    }
  });
}

// The item's chunk in w, to its end; `chunk`: its place in what is saved for the backward.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void forward_chunk(const ExpOmegaWork& w, const ExpOmegaForward& args,
                                              int64_t chunk) {
  const ExpOmegaOptions& options = args.options;
  const OmegaOptions& o = options.omega;
  const OmegaInputs& in = args.in.omega;
  const OmegaItem& item = w.item;
  const OmegaChunk& c = w.chunk;
  const ExpOmegaSaved& saved = args.saved;
  const bool deep = is_deep(o), advance = c.first + c.tokens < item.length || args.capacity >= 0 ||
                                          saved.rows != nullptr;
  const int64_t row = (item.batch * in.tokens + item.begin + c.first) * o.heads + item.head,
                window = (chunk * o.heads + item.head) * saved.window_rows;
  const int last = last_matrix(o);
  load_chunk(w, o, in);
  if (saved.weights != nullptr)
    save_matrix(saved.weights, w.weights, o, item, chunk, whole_matrix(o, last));
  if (saved.momentum != nullptr)
    save_matrix(saved.momentum, w.momentum, o, item, chunk, whole_matrix(o, last));
  __syncthreads();
  scan_chunk(w, o, in, true);
  begin_sums(w, options);
  __syncthreads();
  walk_past<kArithmetic>(w, options, args.in, advance && (o.momentum || in.log_alpha.present));
  for (int l = 0; deep && l < o.sizes.first_layer; ++l)
    layer_read<kArithmetic>(w.z[l], w, o, l, w.k, w.h, c.rows, w.reference.matrix[l], {1, 1});
  save_signals(saved, w, o, window);
  __syncthreads();
  if (deep) deep_signals<kArithmetic>(w, o);
  read_window<kArithmetic>(w, options, args.in);
  save_reads(saved, w, o, row);
  __syncthreads();
  if (deep) read_deep<kArithmetic>(w, o, advance);
  store_exp_output(w, args, row);
  if (advance) push_rows(w, o, saved.rows == nullptr ? nullptr : saved.rows + window * past_ld(o));
}

// tensor [N, capacity, H, R] = value(j, i) for rows j < count, zero beyond.
template <class Value>
__device__ __forceinline__ void store_rows(float* tensor, const ExpOmegaWork& w,
                                           const ExpOmegaForward& args, int64_t count,
                                           const Value& value) {
  const OmegaOptions& o = args.options.omega;
  const int width = row_width(o);
  const int64_t at = w.item.n * args.capacity;
  each(static_cast<int>(args.capacity), width, [&](int j, int i) {
    tensor[((at + j) * o.heads + w.item.head) * width + i] = j < count ? value(j, i) : 0.0f;
  });
}

// Part `part` of the past's rows.
__device__ __forceinline__ void store_past(float* tensor, const ExpOmegaWork& w,
                                           const ExpOmegaForward& args, int part, int64_t count) {
  const OmegaOptions& o = args.options.omega;
  const int64_t ld = past_ld(o);
  const float* const from = w.past + part * row_width(o);
  store_rows(tensor, w, args, count, [&](int j, int i) { return from[j * ld + i]; });
}

// M_ref as it is, of the first `count` tokens: the past, or an argument of this call (`own`).
__device__ __forceinline__ void store_reference(const ExpOmegaWork& w, const ExpOmegaForward& args,
                                                const Memory& matrices, bool own, int64_t count) {
  const OmegaOptions& o = args.options.omega;
  const OmegaItem& item = w.item;
  for (int set = 0; set < row_sets(o); ++set) {
    const OmegaTensor& given = args.in.reference[set];
    const int64_t at = item.n * given.stride[0] + item.head * given.stride[2];
    if (own)
      store_rows(args.reference[set], w, args, count, [&](int j, int i) {
        return load_value(given, at + j * given.stride[1] + i * given.stride[3]);
      });
    else
      store_past(args.reference[set], w, args, set, count);
  }
  store_memory(args.chunk_weights, matrices, o, item);
}

// The final state but for what M_ref is.
__device__ __forceinline__ void store_final(const ExpOmegaWork& w, const ExpOmegaForward& args) {
  const OmegaOptions& o = args.options.omega;
  const OmegaItem& item = w.item;
  const OmegaTensor &k = args.in.omega.k, &keys = args.in.keys;
  const int sets = row_sets(o);
  const int64_t end = item.position + item.length, at = item.n * args.capacity,
                k_at = token_offset(k, item),
                keys_at = item.n * keys.stride[0] + item.head * keys.stride[2];
  for (int set = 0; set < sets; ++set) {
    store_past(args.coefficients[set], w, args, set, end);
    if (o.momentum) store_past(args.momentum[set], w, args, sets + set, end);
  }
  each(static_cast<int>(args.capacity), o.key, [&](int j, int i) {
    float value = 0;
    if (j < item.position)
      value = load_value(keys, keys_at + j * keys.stride[1] + i * keys.stride[3]);
    else if (j < end)
      value = load_value(k, k_at + (j - item.position) * k.stride[1] + i * k.stride[3]);
    store_value(args.keys.data, args.keys.dtype, ((at + j) * o.heads + item.head) * o.key + i,
                value);
  });
  store_memory(args.weights, w.before, o, item);
  if (args.weights_momentum != nullptr)
    store_matrix(args.weights_momentum, w.rate, o, item, whole_matrix(o, last_matrix(o)));
  store_tail(args.k_tail, args.in.omega.k, args.in.omega.k_tail, o, item, 0, o.key, o.key);
  store_tail(args.v_tail, args.in.omega.v, args.in.omega.v_tail, o, item, 0, o.value, o.value);
  if (item.head == 0 && thread_id() == 0) args.position[item.n] = end;
}

// What an item without a valid position leaves: NaN, and -1 as its position.
__device__ __forceinline__ void store_invalid(const ExpOmegaForward& args, const OmegaItem& item) {
  const OmegaOptions& o = args.options.omega;
  const int width = row_width(o), slots = o.window - 1;
  const int64_t heads = o.heads, capacity = args.capacity;
  const int64_t token = (item.batch * args.in.omega.tokens + item.begin) * heads + item.head;
  store_nan(args.o, o.value, token, heads, item.length);
  if (capacity < 0) return;
  const int64_t row = item.n * capacity * heads + item.head,
                slot = item.n * slots * heads + item.head;
  store_nan(args.keys, o.key, row, heads, capacity);
  for (int set = 0; set < row_sets(o); ++set)
    for (float* const rows : {args.coefficients[set], args.momentum[set], args.reference[set]})
      store_nan(rows, width, row, heads, capacity);
  for (int l = 0; is_deep(o) && l < o.matrices; ++l) {
    store_nan_matrix(args.weights[l], o.sizes.matrix[l], o, item);
    store_nan_matrix(args.chunk_weights[l], o.sizes.matrix[l], o, item);
  }
  if (is_deep(o)) store_nan_matrix(args.weights_momentum, o.sizes.matrix[last_matrix(o)], o, item);
  store_nan(args.k_tail, o.key, slot, heads, slots);
  store_nan(args.v_tail, o.value, slot, heads, slots);
  if (item.head == 0 && thread_id() == 0) args.position[item.n] = -1;
}

// The item is in w. A barrier comes before.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void forward_item(ExpOmegaWork& w, const ExpOmegaForward& args) {
  const OmegaOptions& o = args.options.omega;
  const OmegaItem& item = w.item;
  const bool final = args.capacity >= 0, given = args.in.reference[0].present;
  const int64_t end = item.position + item.length;
  const bool closes = end % o.chunk_size == 0;
  begin_item(w, o, args.in);
  int64_t chunk = item.checkpoint;
  for (int64_t first = 0; first < item.length; ++chunk) {
    __syncthreads();
    const OmegaChunk next = chunk_from(o, item, first);
    if (thread_id() == 0) {
      w.chunk = next;
      w.q = w.k + next.rows * o.sizes.kp;
    }
    if (first > 0 && is_deep(o)) set_memory(w.reference, o, w.before);
    __syncthreads();
    const bool own = first == 0 && given;
    first += w.chunk.tokens;
    if (final && !closes && first == item.length)
      store_reference(w, args, w.reference, own, w.chunk.position);
    forward_chunk<kArithmetic>(w, args, chunk);
  }
  __syncthreads();
  if (!final) return;
  if (item.length == 0)
    store_reference(w, args, w.reference, given, end);
  else if (closes)
    store_reference(w, args, w.before, false, end);
  store_final(w, args);
}

template <Arithmetic kArithmetic>
ATLAS_KERNEL void __launch_bounds__(kOmegaThreads, 1)
    exp_omega_forward_kernel(ATLAS_GRID_CONSTANT const ExpOmegaForward args) {
  if constexpr (kCompiledCapability < kArithmeticCapability<kArithmetic>) {
    __trap();  // never launched there
    return;
  }
  DYNAMIC_SHARED(float, shared);
  SHARED_ARRAY(ExpOmegaWork, work, 1);
  if (thread_id() == 0) {
    OmegaArena arena = block_arena(shared, args.space);
    take_exp_forward(work[0], arena, args.options);
  }
  __syncthreads();
  ExpOmegaWork& w = work[0];
  const OmegaOptions& o = args.options.omega;
  const int64_t items = args.in.omega.sequences * o.heads;
  for (int64_t index = blockIdx.x; index < items; index += gridDim.x) {
    __syncthreads();
    const OmegaItem item = exp_omega_item(o, args.in, index, args.capacity);
    if (item.position < 0) {
      store_invalid(args, item);
      continue;
    }
    if (thread_id() == 0) w.item = item;
    if (is_deep(o)) {
      set_memory(w.before, o, w.weights);
      set_momentum(w.rate, o, w.momentum);
      if (args.in.reference[0].present)
        set_memory(w.reference, o, args.in.omega.chunk_weights, item);
      else
        set_memory(w.reference, o, w.weights);
    }
    __syncthreads();
    forward_item<kArithmetic>(w, args);
  }
}

}  // namespace atlas::kernels::cuda
