#pragma once
// One token of the Omega rule for each of M rows, in place (spec section 1, docs/math/omega_rule.md
// section 2). A block takes a (row, head). What counts is bytes: every matrix of the memory and of
// its momentum is read and written once where it lies, M_ref is read (W2 twice, the second time
// from a cache) and written only by the token that closes a chunk. A warp takes four rows of a
// matrix, its lanes neighbouring columns; the rank-W gradient is made on the way from the window's
// d_i and inputs in shared memory, and the read M_t phi(q) is summed in the same pass. All
// arithmetic is float, Newton-Schulz alone multiplies in kArithmetic. The block writes its rows of
// o, of the state's matrices and tails. The last of a row's heads to read the position counts the
// token in it; until then the position says how many have read it, so nobody waits for another
// block, and nothing is left behind.
#include "kernels/cuda/omega_memory.cuh"
#include "kernels/cuda/omega_newton_schulz.cuh"
#include "kernels/cuda/omega_position.cuh"

namespace atlas::kernels::cuda {

constexpr int kUpdateWindow = 8;  // window rows that a warp multiplies at a time

// The token and the matrices that it changes, [out, in] each; in shared memory beside OmegaWork.
struct OmegaStep {
  float *weights[kOmegaMatrices], *momentum[kOmegaMatrices], *reference[kOmegaMatrices];
  bool valid;   // false: the row's slot or position is none, nothing is touched
  bool writes;  // the memory moves by O_t; else it decays only
  bool closes;  // the chunk: M_ref = M_t
};

// What a pass over a matrix does.
enum class OmegaMove : int {
  descend,  // S_t, M_t = alpha M - eta S_t, read
  gather,   // S_t to the momentum and to ns[0]
  apply,    // M_t = alpha M - eta O_t, O_t in ns[0], read
  decay     // S_t (with a momentum), M_t = alpha M, read
};

__device__ __forceinline__ float* state_matrix(const OmegaTensor& tensor, const OmegaItem& item) {
  return static_cast<float*>(const_cast<void*>(tensor.data)) + item.n * tensor.stride[0] +
         item.head * tensor.stride[1];
}

// One thread fills in what the block works on; barrier by the caller.
__device__ ATLAS_SHARED_CODE inline void begin_step(OmegaWork& w, OmegaStep& step,
                                                    const OmegaUpdate& args, int64_t index) {
  const OmegaOptions& o = args.options;
  OmegaItem& item = w.item;
  item = OmegaItem();
  item.batch = index / o.heads;
  item.head = static_cast<int>(index - item.batch * o.heads);
  item.n = slot_of(args, item.batch);
  item.length = 1;
  item.position = position_of(args, item.n);
  step.valid = item.position >= 0 && item.position < args.capacity;
  if (!step.valid) return;
  w.chunk = chunk_of(o, item, 0, 1);
  w.q = w.k + w.chunk.rows * o.sizes.kp;
  step.writes = o.schedule.steps == 0 || (item.position + 1) % o.ns_every == 0;
  step.closes = (item.position + 1) % o.chunk_size == 0;
  for (int l = 0; l < o.matrices; ++l) {
    step.weights[l] = state_matrix(args.in.weights[l], item);
    step.reference[l] = state_matrix(args.in.chunk_weights[l], item);
    step.momentum[l] =
        args.in.momentum[l].present ? state_matrix(args.in.momentum[l], item) : nullptr;
  }
}

// The output of a row whose slot or position is none.
__device__ __forceinline__ void write_nan(const OmegaUpdate& args, const OmegaItem& item) {
  const int64_t at = (item.batch * args.options.heads + item.head) * args.options.value;
  const float nan = bits_to_float(0x7fc00000u);
  each(args.options.value, [&](int j) { store_value(args.o.data, args.o.dtype, at + j, nan); });
}

// The tail's last slots = the window's rows [rows, ld] times `sign`, the newest last. Slots before
// the sequence's start stay as they are.
__device__ __forceinline__ void shift_tail(const OmegaTensor& tail, const OmegaItem& item,
                                           int slots, const float* window, int ld, int rows,
                                           int width, float sign) {
  const int count = min(slots, rows);
  const int64_t at = item.n * tail.stride[0] + item.head * tail.stride[2];
  each(count, width, [&](int i, int j) {
    store_value(const_cast<void*>(tail.data), tail.dtype,
                at + (slots - count + i) * tail.stride[1] + j * tail.stride[3],
                sign * window[(rows - count + i) * ld + j]);
  });
}

// All features in one tile: it is made once a token.
__device__ __forceinline__ bool lifts_once(const OmegaOptions& o) {
  return o.features <= o.sizes.tile;
}

// Calls use(first, count, x, ld) for columns [first, first + count) of matrix l, x [rows + 1, ld]
// its inputs there: the window's, then the query's.
template <class Use>
__device__ __forceinline__ void each_input(const OmegaWork& w, const OmegaOptions& o, int l,
                                           const Use& use) {
  if (!sees_phi(o, l)) {
    use(0, o.hidden, w.h, o.sizes.fp);
  } else if (o.degree == 0) {
    use(0, o.key, w.k, o.sizes.kp);
  } else {
    each_tile(o, [&](int first, int count) {
      if (!lifts_once(o)) lift_tile(w, o, w.k, w.chunk.rows + 1, first, count);
      use(first, count, w.lift.tile, o.sizes.tp);
    });
  }
}

// out [rows, ld] = `add` out + by_i M_ref x_i for matrix l and the window's rows i; by null: 1.
// Barrier by the caller.
__device__ __forceinline__ void window_read(float* out, const OmegaWork& w, const OmegaStep& step,
                                            const OmegaUpdate& args, int l, const float* by,
                                            bool add) {
  const OmegaOptions& o = args.options;
  const OmegaMatrix& m = o.sizes.matrix[l];
  const float* const matrix = step.reference[l];
  const int64_t stride = args.in.chunk_weights[l].stride[2];
  const int rows = w.chunk.rows, down = (m.out + kUpdateRows - 1) / kUpdateRows,
            tasks = (rows + kUpdateWindow - 1) / kUpdateWindow * down;
  each_input(w, o, l, [&](int first, int count, const float* x, int x_ld) {
    for (int task = thread_id() / kWarp; task < tasks; task += block_threads() / kWarp) {
      const int group = static_cast<int>(static_cast<unsigned>(task) / down),
                j = (task - group * down) * kUpdateRows, i = group * kUpdateWindow;
      float sums[kUpdateRows * kUpdateWindow] = {};
      for (int f = lane_id(); f < count; f += kWarp) {
        float weight[kUpdateRows];
#pragma unroll
        for (int r = 0; r < kUpdateRows; ++r)
          weight[r] = matrix[min(j + r, m.out - 1) * stride + first + f];
#pragma unroll
        for (int s = 0; s < kUpdateWindow; ++s) {
          const float input = x[min(i + s, rows - 1) * x_ld + f];
#pragma unroll
          for (int r = 0; r < kUpdateRows; ++r) sums[r * kUpdateWindow + s] += weight[r] * input;
        }
      }
      float sum = group_sums(sums);
      const int column = j + lane_id() / kUpdateWindow, row = i + lane_id() % kUpdateWindow;
      if (column >= m.out || row >= rows) continue;
      if (by != nullptr) sum *= by[row];
      float* const at = out + row * m.ld + column;
      *at = first > 0 || add ? *at + sum : sum;
    }
  });
}

// b [rows, fp] = W2ᵀ e at M_ref. Barrier by the caller.
__device__ __forceinline__ void pull_back(const OmegaWork& w, const OmegaStep& step,
                                          const OmegaUpdate& args) {
  const OmegaOptions& o = args.options;
  const OmegaSizes& sz = o.sizes;
  const int last = last_matrix(o), rows = w.chunk.rows;
  const float* const top = step.reference[last];
  const int64_t stride = args.in.chunk_weights[last].stride[2];
  each((rows + kUpdateWindow - 1) / kUpdateWindow, o.hidden, [&](int group, int f) {
    const int i = group * kUpdateWindow;
    float sums[kUpdateWindow] = {};
    for (int j = 0; j < o.value; ++j) {
      const float weight = top[j * stride + f];
#pragma unroll
      for (int s = 0; s < kUpdateWindow; ++s)
        sums[s] += weight * w.d[last][min(i + s, rows - 1) * sz.vp + j];
    }
#pragma unroll
    for (int s = 0; s < kUpdateWindow; ++s)
      if (i + s < rows) w.b[(i + s) * sz.fp + f] = sums[s];
  });
}

// (3) to (6) with e (which holds -v) and the deeper d times their gates. Where M_ref counts,
// answers() is to add that of a linear memory times the gates to e, or to make z of the first layer
// of a deep one, in d. Barriers on both sides.
template <class Answers>
__device__ __forceinline__ void window_signals(const OmegaWork& w, const OmegaStep& step,
                                               const OmegaUpdate& args, const Answers& answers) {
  const OmegaOptions& o = args.options;
  const OmegaSizes& sz = o.sizes;
  const int last = last_matrix(o), rows = w.chunk.rows;
  float* const e = w.d[last];
  __syncthreads();
  each(rows, o.value, [&](int i, int j) {
    const float shift = o.l2 && o.residual ? w.k[i * sz.kp + j] : 0.0f;
    e[i * sz.vp + j] = w.a[i] * (e[i * sz.vp + j] + shift);
  });
  __syncthreads();
  if (o.l2 || is_deep(o)) answers();
  __syncthreads();
  if (!is_deep(o)) return;
  hidden_layer(w.h, w.d[0], w.d[1], sz.fp, rows, o);
  __syncthreads();
  if (o.l2) window_read(e, w, step, args, last, w.a, true);
  __syncthreads();
  pull_back(w, step, args);
  __syncthreads();
  inner_signals(w, o, rows, w.d[0], w.d[1]);
  __syncthreads();
}

// Zeros behind the window's signals, up to whole groups of rows: these are loaded together.
__device__ __forceinline__ void pad_signals(const OmegaWork& w, const OmegaOptions& o) {
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = o.sizes.matrix[l];
    const int beyond = m.out % kUpdateRows;
    if (beyond != 0)
      each(o.sizes.rows, kUpdateRows - beyond,
           [&](int i, int j) { w.d[l][i * m.ld + m.out + j] = 0; });
  }
}

// Rows [j, j + 4) of matrix l in columns [first, first + count) by one warp; y [out] gets the read.
template <OmegaMove kMove>
__device__ __forceinline__ void move_rows(float* y, const OmegaWork& w, const OmegaStep& step,
                                          const OmegaUpdate& args, int l, int j, int first,
                                          int count, const float* x, int x_ld) {
  constexpr bool kMoves = kMove == OmegaMove::descend || kMove == OmegaMove::apply,
                 kWhole = kMove == OmegaMove::gather || kMove == OmegaMove::apply;
  const OmegaOptions& o = args.options;
  const OmegaMatrix& m = o.sizes.matrix[l];
  const int rows = w.chunk.rows, left = m.out - j, ns_ld = leading(m.in);
  const bool momentum = kMove != OmegaMove::apply && step.momentum[l] != nullptr,
             gradient = kMove == OmegaMove::decay ? momentum : kMove != OmegaMove::apply;
  const int64_t weights_stride = args.in.weights[l].stride[2],
                momentum_stride = args.in.momentum[l].stride[2],
                reference_stride = args.in.chunk_weights[l].stride[2];
  float* const weights = step.weights[l] + j * weights_stride + first;
  float* const momenta = momentum ? step.momentum[l] + j * momentum_stride + first : nullptr;
  float* const reference = step.reference[l] + j * reference_stride + first;
  float* const whole = kWhole ? w.ns[0] + j * ns_ld + first : nullptr;
  const float* const d = w.d[l] + j;
  const float alpha = w.alpha[0], theta = w.theta[0], eta = w.eta[0];
  float sums[kUpdateRows] = {};
  for (int f = lane_id(); f < count; f += kWarp) {
    float old[kUpdateRows] = {}, rate[kUpdateRows] = {}, move[kUpdateRows] = {};
#pragma unroll
    for (int r = 0; r < kUpdateRows; ++r) {
      if (r >= left) continue;
      if (kMove != OmegaMove::gather) old[r] = weights[r * weights_stride + f];
      if (momentum) rate[r] = momenta[r * momentum_stride + f];
      if (kMove == OmegaMove::apply) move[r] = whole[r * ns_ld + f];
    }
    for (int i = 0; gradient && i < rows; ++i) {
      const float input = x[i * x_ld + f];
      const Pack16 signals = *reinterpret_cast<const Pack16*>(d + i * m.ld);
#pragma unroll
      for (int r = 0; r < kUpdateRows; ++r) move[r] += bits_to_float(signals.word[r]) * input;
    }
    const float query = kMove == OmegaMove::gather ? 0.0f : x[rows * x_ld + f];
#pragma unroll
    for (int r = 0; r < kUpdateRows; ++r) {
      if (r >= left) continue;
      if (momentum) momenta[r * momentum_stride + f] = move[r] += theta * rate[r];
      if (kMove == OmegaMove::gather) {
        whole[r * ns_ld + f] = move[r];
        continue;
      }
      float next = alpha * old[r];
      if (kMoves) next -= eta * move[r];
      weights[r * weights_stride + f] = next;
      if (step.closes) reference[r * reference_stride + f] = next;
      sums[r] += next * query;
    }
  }
  if (kMove == OmegaMove::gather) return;
  const float sum = group_sums(sums);
  constexpr int kLanes = kWarp / kUpdateRows;  // that hold the same row's sum
  const int r = lane_id() / kLanes;
  if (lane_id() % kLanes == 0 && r < left) y[j + r] = first > 0 ? y[j + r] + sum : sum;
}

// Barriers on neither side.
template <OmegaMove kMove>
__device__ __forceinline__ void move_matrix(float* y, const OmegaWork& w, const OmegaStep& step,
                                            const OmegaUpdate& args, int l) {
  const int height = args.options.sizes.matrix[l].out;
  each_input(w, args.options, l, [&](int first, int count, const float* x, int x_ld) {
    for (int j = thread_id() / kWarp * kUpdateRows; j < height;
         j += block_threads() / kWarp * kUpdateRows)
      move_rows<kMove>(y, w, step, args, l, j, first, count, x, x_ld);
  });
}

// y [out] = W_t u for matrix l, which goes from W_{t-1} to W_t. A barrier comes after.
template <Arithmetic kArithmetic, bool kMuon>
__device__ __forceinline__ void update_matrix(float* y, const OmegaWork& w, const OmegaStep& step,
                                              const OmegaUpdate& args, int l) {
  if constexpr (!kMuon) {
    move_matrix<OmegaMove::descend>(y, w, step, args, l);
  } else if (!step.writes) {
    move_matrix<OmegaMove::decay>(y, w, step, args, l);
  } else {
    const OmegaOptions& o = args.options;
    const OmegaMatrix& m = o.sizes.matrix[l];
    move_matrix<OmegaMove::gather>(nullptr, w, step, args, l);
    // As the state has it: NS(Sᵀ) = NS(S)ᵀ. It starts from where it is applied.
    const OmegaMatrix upright{m.out, m.in, leading(m.in), 0};
    const float* const x =
        block_newton_schulz<kArithmetic>(w.ns[0], upright, o.schedule, w.ns, w.squares, w.line);
    each(m.out, m.in, [&](int i, int j) {
      const int at = i * upright.ld + j;
      w.ns[0][at] = o.ns_scales[l] * x[at];
    });
    __syncthreads();
    move_matrix<OmegaMove::apply>(y, w, step, args, l);
  }
  __syncthreads();
}

// The item is in w and step. A barrier comes before.
template <Arithmetic kArithmetic, bool kMuon>
__device__ __forceinline__ void update_item(const OmegaWork& w, const OmegaStep& step,
                                            const OmegaUpdate& args) {
  const OmegaOptions& o = args.options;
  const OmegaSizes& sz = o.sizes;
  const OmegaItem& item = w.item;
  const int rows = w.chunk.rows, last = last_matrix(o);
  load_chunk(w, o, args.in);
  const int64_t gamma = gamma_offset(args.in, item, w.chunk);
  each(rows, [&](int i) { w.a[i] = band(args.in.gamma, gamma, w.chunk, o.window, 0, i); });
  __syncthreads();
  shift_tail(args.in.k_tail, item, o.window - 1, w.k, sz.kp, rows, o.key, 1);
  shift_tail(args.in.v_tail, item, o.window - 1, w.d[last], sz.vp, rows, o.value, -1);
  if (o.degree > 0 && lifts_once(o)) lift_tile(w, o, w.k, rows + 1, 0, o.features);
  if (step.writes || o.momentum)
    window_signals(w, step, args, [&] {
      for (int l = 0; l < sz.first_layer; ++l)
        window_read(w.d[l], w, step, args, l, is_deep(o) ? nullptr : w.a, !is_deep(o));
    });
  for (int l = 0; l < sz.first_layer; ++l)
    update_matrix<kArithmetic, kMuon>(is_deep(o) ? w.queries[l] : w.y, w, step, args, l);
  if (is_deep(o)) {
    hidden_layer(w.h + rows * sz.fp, w.queries[0], w.queries[1], sz.fp, 1, o);
    __syncthreads();
    update_matrix<kArithmetic, kMuon>(w.y, w, step, args, last);
  }
  const int64_t at = (item.batch * o.heads + item.head) * o.value;
  each(o.value, [&](int j) {
    const float raw = o.residual ? w.q[j] : 0.0f;
    store_value(args.o.data, args.o.dtype, at + j, w.y[j] + raw);
  });
}

template <Arithmetic kArithmetic, bool kMuon>
ATLAS_KERNEL void __launch_bounds__(kOmegaThreads, kMuon ? 1 : 0)
    omega_update_kernel(ATLAS_GRID_CONSTANT const OmegaUpdate args) {
  if constexpr (kCompiledCapability < kArithmeticCapability<kArithmetic>) {
    __trap();  // never launched there
    return;
  }
  DYNAMIC_SHARED(float, shared);
  SHARED_ARRAY(OmegaWork, work, 1);
  SHARED_ARRAY(OmegaStep, steps, 1);
  SHARED_ARRAY(int64_t, index, 1);  // of the row and head; registers are scarce
  const OmegaOptions& o = args.options;
  if (thread_id() == 0) {
    OmegaArena arena = block_arena(shared, args.space);
    take_update(work[0], arena, o);
    index[0] = blockIdx.x;
  }
  __syncthreads();
  OmegaWork& w = work[0];
  begin_lift(w, o);
  pad_signals(w, o);
  for (;;) {
    __syncthreads();
    if (index[0] >= args.rows * o.heads) break;
    if (thread_id() == 0) begin_step(w, steps[0], args, index[0]);
    __syncthreads();
    if (thread_id() == 0) index[0] += gridDim.x;
    if (!steps[0].valid) {
      write_nan(args, w.item);
      continue;
    }
    count_token(args, w.item);
    update_item<kArithmetic, kMuon>(w, steps[0], args);
  }
}

}  // namespace atlas::kernels::cuda
