#pragma once
// What the exponential rule's backward pass makes anew from what the forward saved
// (docs/math/exp_omega_rule.md, eq. 18).
#include "kernels/cuda/exp_omega_grads.cuh"
#include "kernels/cuda/exp_omega_kernel.cuh"
#include "kernels/cuda/omega_states.cuh"

namespace atlas::kernels::cuda {

// Position at which chunk `number` of the item begins, and that of its window's first row.
__device__ __forceinline__ int64_t chunk_begin(const OmegaOptions& o, const OmegaItem& item,
                                               int number) {
  return number == 0 ? item.position : (item.position / o.chunk_size + number) * o.chunk_size;
}
__device__ __forceinline__ int64_t window_begin(const OmegaOptions& o, const OmegaItem& item,
                                                int number) {
  const int64_t first = chunk_begin(o, item, number) - (o.window - 1);
  return first > 0 ? first : 0;
}

// g.moves: m, s, p of every chunk's end, a thread for each chunk. Barrier by the caller.
__device__ __forceinline__ void scan_moves(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                           const OmegaOptions& o, const OmegaInputs& in,
                                           int chunks) {
  const OmegaItem& item = w.item;
  const int64_t eta = token_offset(in.eta, item);
  each(chunks, [&](int number) {
    const int64_t first = chunk_begin(o, item, number) - item.position;
    const int64_t next = chunk_begin(o, item, number + 1) - item.position;
    const int64_t end = smaller(next, item.length);
    float p = o.momentum ? 1.0f : 0.0f, s = 0, m = 1;
    for (int64_t token = first; token < end; ++token) {
      const float alpha = decay(in.log_alpha, item, token);
      p *= o.momentum ? decay(in.log_theta, item, token) : 0.0f;
      s = alpha * s + load_value(in.eta, eta + token * in.eta.stride[1]) * p;
      m *= alpha;
    }
    g.moves[3 * number] = m;
    g.moves[3 * number + 1] = s;
    g.moves[3 * number + 2] = p;
  });
}

// g.products [i] = the moves of chunks i to number - 1 in one, i <= number; a warp walks down from
// `number`. Barrier by the caller.
__device__ __forceinline__ void multiply_moves(const ExpOmegaGrads& g, int number) {
  if (thread_id() >= kWarp) return;
  RowMove all{1, 0, 1};
  for (int i = number; i >= 0; --i) {
    if (i < number) {
      const float* const move = g.moves + 3 * i;
      all.s = all.m * move[1] + all.s * move[2];
      all.m *= move[0];
      all.p *= move[2];
    }
    if (lane_id() != 0) continue;
    g.products[3 * i] = all.m;
    g.products[3 * i + 1] = all.s;
    g.products[3 * i + 2] = all.p;
  }
}

// Where rows [first, first + count) before chunk `number` were last held by a window, and what
// moved them since. Barrier by the caller.
__device__ __forceinline__ void find_rows(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                          const OmegaOptions& o, const ExpOmegaSaved& saved,
                                          int number, int64_t first, int count) {
  const OmegaItem& item = w.item;
  each(count, [&](int i) {
    const int64_t row = first + i;
    int holder = -1;  // the state
    if (number > 0 && row >= window_begin(o, item, 0)) {
      const int64_t last = (row + o.window - 1) / o.chunk_size - item.position / o.chunk_size;
      holder = static_cast<int>(smaller(last > 0 ? last : 0, number - 1));
    }
    g.saved_at[i] = holder < 0
                        ? -1
                        : ((item.checkpoint + holder) * o.heads + item.head) * saved.window_rows +
                              row - window_begin(o, item, holder);
    const float* const move = g.products + 3 * (holder + 1);
    for (int k = 0; k < 3; ++k) g.row_moves[k * kKeyBlock + i] = move[k];
  });
}

// An element of a state's row; absent: zero.
__device__ __forceinline__ float state_row(const OmegaTensor& tensor, const OmegaItem& item,
                                           int64_t row, int column) {
  return tensor.present
             ? load_value(tensor, item.n * tensor.stride[0] + row * tensor.stride[1] +
                                      item.head * tensor.stride[2] + column * tensor.stride[3])
             : 0.0f;
}

// Sums of what a thread finds while rows go back over the chunk.
struct MoveGrads {
  float m, s, p;
};

// w.block and w.rates [count, ld] = set `set` of rows [first, first + count) at the chunk's start,
// from where find_rows saw them. Their gradients go from behind the chunk to before it, and those
// that the final M_ref's first `reference_rows` rows have join them. Barrier by the caller.
__device__ __forceinline__ void rebuild_rows(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                             const ExpOmegaBackward& args, int set, int64_t first,
                                             int count, const RowMove& move, int64_t reference_rows,
                                             MoveGrads& grads) {
  const OmegaOptions& o = args.options.omega;
  const int ld = row_ld(o), width = row_width(o), row = static_cast<int>(past_ld(o));
  const int rate = row_sets(o) * width;
  const OmegaTensor &coefficients = args.in.coefficients[set], &momentum = args.in.momentum[set];
  float* const past = g.past + first * row + set * width;
  each(count, width, [&](int i, int j) {
    const int64_t at = g.saved_at[i];
    const float* const held = args.saved.rows + at * row + set * width + j;
    float b = at < 0 ? state_row(coefficients, w.item, first + i, j) : held[0], s = 0;
    float* const grad = past + static_cast<int64_t>(i) * row + j;
    float grad_b = grad[0];
    if (o.momentum) {
      s = at < 0 ? state_row(momentum, w.item, first + i, j) : held[rate];
      b = g.row_moves[i] * b - g.row_moves[kKeyBlock + i] * s;
      s *= g.row_moves[2 * kKeyBlock + i];
      w.rates[i * ld + j] = s;
      const float grad_s = grad[rate];
      grads.s -= grad_b * s;
      grads.p += grad_s * s;
      grad[rate] = move.p * grad_s - move.s * grad_b;
    } else {
      b *= g.row_moves[i];
    }
    w.block[i * ld + j] = b;
    grads.m += grad_b * b;
    grad_b *= move.m;
    if (first + i < reference_rows)
      grad_b += state_row(args.grad_final_reference[set], w.item, first + i, j);
    grad[0] = grad_b;
  });
}

// The matrices at the start of chunk `number` where w.before and w.rate have them: the raw-input
// maps decayed, W2 and its momentum as saved. Barrier by the caller.
__device__ __forceinline__ void rebuild_matrices(const ExpOmegaWork& w, const ExpOmegaGrads& g,
                                                 const OmegaOptions& o, const OmegaInputs& in,
                                                 const ExpOmegaSaved& saved, int number) {
  const OmegaMatrix& last = o.sizes.matrix[last_matrix(o)];
  const float* const held =
      saved.weights + ((w.item.checkpoint + number) * o.heads + w.item.head) * last.in * last.out;
  each(last.in, last.out,
       [&](int i, int j) { w.weights[i * last.ld + j] = held[i * last.out + j]; });
  for (int l = 0; l < o.sizes.first_layer; ++l)
    load_matrix(w.weights, in.weights[l], o, w.item, whole_matrix(o, l), g.products[0]);
}

}  // namespace atlas::kernels::cuda
