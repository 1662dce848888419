#pragma once
// Buffers of the backward pass, beside those of the forward's recomputation (omega_work.cuh).
#include "kernels/cuda/omega_work.cuh"

namespace atlas::kernels::cuda {

// Adjoints of what OmegaWork names; like it, in shared memory.
struct OmegaGrads {
  float *weights, *momentum;  // states; in: after the chunk, out: before it
  float* reference;           // a state: of M_ref where that is an argument of its own, else null
  float* y;                   // [chunk, vp]
  float* q;                   // [chunk, kp]
  float *k_sum, *v_sum;       // [rows, kp], [rows, vp] slot j: token first - (W-1) + j
  float* d[kOmegaMatrices];   // [rows, ld]; the last one is of e
  float* h;                   // [rows, fp] of the rows' hidden layer
  float* query_h;             // [chunk, fp]
  float* queries[2];          // [chunk, fp]
  float *cf, *scores;         // [chunk, rp]
  float *pair, *other;        // [chunk, rp] scratch; in the end `pair` has the gradient of A
  // -Cf kernel of each matrix, and the gradient of the last one's kernel. Outside teams the last
  // ones are pair and scores themselves.
  float *pairs[kOmegaMatrices], *last_scores;
  float *wide, *wide2;         // [rows, max(kp, vp, fp)] scratch
  float* a_last;               // [rp] of A's last row
  float *p, *s, *m;            // [chunk]
  float *alpha, *theta, *eta;  // [chunk]
  float* scales;               // [5, threads]
  // Newton-Schulz form: states of the chunk at its segments.
  float *segment_weights, *segment_momentum;  // [segments + 1] before each segment
  float* segment_orthogonal;                  // [segments] NS(S) at its write
  float *grad_o, *grad_s;                     // states
  float* tape;                                // [steps, largest]
  OmegaStage stage;
  bool wants_u, wants_x;
  int part;
};

__host__ __device__ __forceinline__ int64_t most_segments(const OmegaOptions& o) {
  return o.ns_every >= o.chunk ? 2 : (o.chunk + o.ns_every - 1) / o.ns_every + 1;
}

// Of the scratch rows.
__host__ __device__ __forceinline__ int widest_row(const OmegaOptions& o) {
  return larger(o.sizes.kp, larger(o.sizes.vp, o.sizes.fp));
}

// True as take_states. `own_reference`: M_ref is an argument.
__host__ __device__ __forceinline__ bool take_backward(OmegaWork& w, OmegaGrads& g,
                                                       OmegaArena& arena, const OmegaOptions& o,
                                                       bool own_reference, int threads) {
  const OmegaSizes& sz = o.sizes;
  const bool muon = o.schedule.steps > 0;
  const int64_t chunk = o.chunk, rows = sz.rows, pairs = chunk * sz.rp;
  g = OmegaGrads();
  take_common(w, arena, o);
  for (float** gates : {&g.p, &g.s, &g.m, &g.alpha, &g.theta, &g.eta}) *gates = arena.take(chunk);
  g.a_last = arena.take(sz.rp);
  g.scales = arena.take(kScaleSlots * threads);
  const bool on_chip = take_states(g.weights, g.momentum, o.momentum, w, arena, o, 4);
  take_rows(w, arena, o);
  g.y = arena.take(chunk * sz.vp);
  for (int l = 0; l < o.matrices; ++l) g.d[l] = arena.take(rows * sz.matrix[l].ld);
  g.q = arena.take(chunk * sz.kp);
  g.k_sum = arena.take(rows * sz.kp);
  g.v_sum = arena.take(rows * sz.vp);
  g.wide = arena.take(rows * widest_row(o));
  w.a = arena.take(pairs);
  if (!muon) {
    w.cf = arena.take(pairs);
    w.scores = arena.take(pairs);
    g.cf = arena.take(pairs);
    g.scores = arena.take(pairs);
    g.other = arena.take(pairs);
    g.wide2 = arena.take(rows * widest_row(o));
  }
  g.pair = arena.take(pairs);
  for (int l = 0; l < o.matrices; ++l)
    g.pairs[l] = l > 0 && l < sz.first_layer && !muon ? arena.take(pairs) : g.pair;
  g.last_scores = g.scores;
  if (is_deep(o)) {
    for (int l = 0; l < sz.first_layer; ++l) {
      w.z[l] = arena.take(rows * sz.fp);
      g.queries[l] = arena.take(chunk * sz.fp);
    }
    g.h = arena.take(rows * sz.fp);
    g.query_h = arena.take(chunk * sz.fp);
  }
  g.reference = own_reference ? arena.take(sz.state) : nullptr;
  if (!muon) return on_chip;
  const int64_t segments = most_segments(o);
  g.grad_o = arena.take(sz.state);
  g.grad_s = arena.take(sz.state);
  g.tape = arena.take(static_cast<int64_t>(o.schedule.steps) * sz.largest);
  g.segment_weights = arena.take((segments + 1) * sz.state);
  g.segment_momentum = arena.take((segments + 1) * sz.state);
  g.segment_orthogonal = arena.take(segments * sz.state);
  return on_chip;
}

// use(i, sum_j a_ij b_ij) for i < rows, by one lane of a warp.
template <class Use>
__device__ __forceinline__ void each_dot(int rows, int width, const float* a, int a_ld,
                                         const float* b, int b_ld, const Use& use) {
  for (int i = thread_id() / kWarp; i < rows; i += block_threads() / kWarp) {
    float sum = 0;
    for (int j = lane_id(); j < width; j += kWarp) sum += a[i * a_ld + j] * b[i * b_ld + j];
    sum = group_sum(sum);
    if (lane_id() == 0) use(i, sum);
  }
}

}  // namespace atlas::kernels::cuda
