#pragma once
// Sizes of one call of the Omega rule, and the buffers that a block works in. The same function
// lays them out on the host, to know how much is needed, and on the device. Matrices are held
// transposed, [in, out]; a state is all matrices of a memory, one behind the other.
#include "kernels/cuda/block.cuh"
#include "kernels/cuda/omega_rule.h"

namespace atlas::kernels::cuda {

constexpr int kOmegaThreads = 256;  // most of a block
constexpr int kOmegaWarps = kOmegaThreads / kWarp;
constexpr int kScaleSlots = 5;  // c_0 to c_4
constexpr int kUpdateRows = 4;  // of a matrix that a warp updates at a time

// A leading dimension of 4 modulo 8 floats: fragments of eight rows lie in different banks.
__host__ __device__ __forceinline__ int leading(int width) { return (width + 3) / 8 * 8 + 4; }

__host__ __device__ __forceinline__ int larger(int a, int b) { return a > b ? a : b; }
__host__ __device__ __forceinline__ int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

__host__ __device__ __forceinline__ bool is_deep(const OmegaOptions& o) { return o.matrices > 1; }
__host__ __device__ __forceinline__ bool is_gated(const OmegaOptions& o) { return o.matrices > 2; }
__host__ __device__ __forceinline__ int last_matrix(const OmegaOptions& o) {
  return o.matrices - 1;
}
// Outputs of matrix l, all slices together.
__host__ __device__ __forceinline__ int all_outputs(const OmegaOptions& o, int l) {
  return o.sizes.matrix[l].out * o.slices;
}
__host__ __device__ __forceinline__ bool sees_phi(const OmegaOptions& o, int l) {
  return l < o.sizes.first_layer;
}

// Whether matrix l has a momentum.
__host__ __device__ __forceinline__ bool has_momentum(const OmegaOptions& o, int l) {
  return o.momentum && l >= o.sizes.momentum_from;
}

// Whether steps of Newton-Schulz come in stretches on the smaller side's squares.
__host__ __device__ __forceinline__ bool is_elongated(int m, int n) {
  return m < n ? n >= 2 * m : m >= 2 * n;
}

// Takes buffers from shared memory as long as they fit, then from the block's scratch.
struct OmegaArena {
  float *shared, *device;
  int64_t shared_limit;
  int64_t shared_used = 0, device_used = 0;

  __host__ __device__ __forceinline__ float* take(int64_t floats) {
    floats = (floats + 3) / 4 * 4;
    const bool fits = has_shared(floats);
    int64_t& used = fits ? shared_used : device_used;
    float* const memory = fits ? shared : device;
    float* const taken = memory == nullptr ? nullptr : memory + used;
    used += floats;
    return taken;
  }

  __host__ __device__ __forceinline__ bool has_shared(int64_t floats) const {
    return shared_used + floats <= shared_limit;
  }

  // From the scratch, whatever is free.
  __host__ __device__ __forceinline__ float* take_device(int64_t floats) {
    float* const taken = device == nullptr ? nullptr : device + device_used;
    device_used += (floats + 3) / 4 * 4;
    return taken;
  }
};

// The running block's.
__device__ __forceinline__ OmegaArena block_arena(float* shared, const OmegaSpace& space) {
  return {shared, space.device + blockIdx.x * space.device_floats, space.shared_floats};
}

// The monomials of phi: indices in ascending order, `key` past the monomial's own degree.
struct OmegaLift {
  uint32_t* indices;  // [features, 2], two to a word
  float* roots;       // [features] root of the multinomial coefficient
  float* tile;        // [rows, tp] phi of some rows, or a gradient of it
};

// One sequence and head: tokens [begin, begin + length) of batch row `batch`, whose first one has
// the given position; its chunks' checkpoints are [checkpoint, checkpoint_end).
struct OmegaItem {
  int64_t n, batch, begin, length, position, checkpoint, checkpoint_end;
  int head;
  int slice, value_at;  // of V, and its first output
};

// Tokens [first, first + tokens) of the item, and `rows` rows of the window: the `overhang` tokens
// before the chunk and its own. Token t of the chunk sees rows i <= overhang + t. A block of a team
// (omega_team.cuh) has some of the tokens, or some of the rows.
struct OmegaChunk {
  int64_t first, position;
  int tokens, overhang, rows;
};

// The matrices of a memory where they lie, [in, out] each.
struct Memory {
  View matrix[kOmegaMatrices];
};

// Where a block is and what it works on. It lies in shared memory itself: registers would not hold
// it.
struct OmegaWork {
  OmegaItem item;
  OmegaChunk chunk;
  Memory reference;            // M_ref of the chunk
  Memory before, rate;         // the memory and the momentum that enter the chunk
  float *alpha, *theta, *eta;  // [chunk]
  float *p, *s, *m;            // [chunk] scans, docs/math/omega_rule.md (13), (14)
  float* line;                 // a float for each warp
  float* c;                    // [5] the scales
  float *q, *k;                // [chunk, kp], [rows, kp]
  float* d[kOmegaMatrices];    // [rows, ld] error signals; the last one is e
  float* z[2];                 // [rows, fp] z1, z3 at M_ref; in the forward these are d[0], d[1]
  float *h, *b;                // [rows, fp] the hidden layer, and W2ᵀ e
  float* queries[2];           // [chunk, fp] z1, z3 of the queries
  float* query_h;              // [chunk, fp]
  float* y;                    // [chunk, vp]
  float *weights, *momentum;   // states
  float *a, *cf;               // [chunk, rp]; forward: a is its last row
  float* scores;               // [chunk, rp]
  OmegaLift lift;
  float* ns[2];       // Newton-Schulz: X and its successor, which may be lift.tile between calls,
  float* squares[4];  // and what multiplies them
};

__host__ __device__ __forceinline__ void take_tile(OmegaWork& w, OmegaArena& arena,
                                                   const OmegaOptions& o) {
  w.lift.tile = arena.take(static_cast<int64_t>(o.sizes.rows) * o.sizes.tp);
}

// What each block of a team has for itself.
__host__ __device__ __forceinline__ void take_own(OmegaWork& w, OmegaArena& arena,
                                                  const OmegaOptions& o) {
  w.line = arena.take(kOmegaWarps);
  w.c = arena.take(kScaleSlots);
  if (o.degree == 0) return;
  if (o.schedule.steps == 0) take_tile(w, arena, o);  // else take_steps does
  w.lift.indices = reinterpret_cast<uint32_t*>(arena.take(2 * static_cast<int64_t>(o.features)));
  w.lift.roots = arena.take(o.features);
}

// What every pass has, the most used first.
__host__ __device__ __forceinline__ void take_common(OmegaWork& w, OmegaArena& arena,
                                                     const OmegaOptions& o) {
  w = OmegaWork();
  w.alpha = arena.take(o.chunk);
  w.theta = arena.take(o.chunk);
  w.eta = arena.take(o.chunk);
  w.p = arena.take(o.chunk);
  w.s = arena.take(o.chunk);
  w.m = arena.take(o.chunk);
  take_own(w, arena, o);
}

// Of a deep memory's rows and queries.
__host__ __device__ __forceinline__ void take_hidden(OmegaWork& w, OmegaArena& arena,
                                                     const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  const int64_t rows = sz.rows, chunk = o.chunk;
  w.h = arena.take(rows * sz.fp);
  w.b = arena.take(rows * sz.fp);
  for (int l = 0; l < sz.first_layer; ++l) w.queries[l] = arena.take(chunk * sz.fp);
  w.query_h = arena.take(chunk * sz.fp);
}

__host__ __device__ __forceinline__ void take_rows(OmegaWork& w, OmegaArena& arena,
                                                   const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  const int64_t rows = sz.rows, chunk = o.chunk;
  w.q = arena.take(chunk * sz.kp);
  w.k = arena.take(rows * sz.kp);
  for (int l = 0; l < o.matrices; ++l) w.d[l] = arena.take(rows * sz.matrix[l].ld);
  if (is_deep(o)) take_hidden(w, arena, o);
}

__host__ __device__ __forceinline__ void take_newton_schulz(OmegaWork& w, OmegaArena& arena,
                                                            const OmegaOptions& o, int squares) {
  for (int i = 0; i < squares; ++i)
    w.squares[i] = arena.take(static_cast<int64_t>(o.sizes.side) * leading(o.sizes.side));
  for (float*& matrix : w.ns) matrix = arena.take(o.sizes.largest);
}

// Newton-Schulz's matrices and the tile of features, which no step needs: it lies in X's successor
// where it is no larger and all of them fit, else it comes first. Sizes are multiples of four, for
// `leading` makes them so. True if the matrices are in shared memory.
__host__ __device__ __forceinline__ bool take_steps(OmegaWork& w, OmegaArena& arena,
                                                    const OmegaOptions& o, int squares) {
  const OmegaSizes& sz = o.sizes;
  const int64_t steps = int64_t{squares} * sz.side * leading(sz.side) + 2 * int64_t{sz.largest},
                tile = static_cast<int64_t>(sz.rows) * sz.tp;
  const bool shares = o.degree > 0 && tile <= sz.largest && arena.has_shared(steps);
  if (o.degree > 0 && !shares) take_tile(w, arena, o);
  const int64_t before = arena.device_used;
  take_newton_schulz(w, arena, o, squares);
  if (shares) w.lift.tile = w.ns[1];
  return arena.device_used == before;
}

// A state and its momentum, or their gradients. With Newton-Schulz the matrices of its steps come
// first, which are met far more often than the momentum and the weights, which a write meets. True
// if what comes first is in shared memory.
__host__ __device__ __forceinline__ bool take_states(float*& weights, float*& momentum,
                                                     bool with_momentum, OmegaWork& w,
                                                     OmegaArena& arena, const OmegaOptions& o,
                                                     int squares) {
  momentum = nullptr;
  if (o.schedule.steps > 0) {
    const bool on_chip = take_steps(w, arena, o, squares);
    if (with_momentum) momentum = arena.take(o.sizes.state);
    weights = arena.take(o.sizes.state);
    return on_chip;
  }
  const int64_t before = arena.device_used;
  weights = arena.take(o.sizes.state);
  if (with_momentum) momentum = arena.take(o.sizes.state);
  return arena.device_used == before;
}

// The forward's buffers; true as take_states.
__host__ __device__ __forceinline__ bool take_forward(OmegaWork& w, OmegaArena& arena,
                                                      const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  const bool muon = o.schedule.steps > 0;
  take_common(w, arena, o);
  const bool on_chip =
      take_states(w.weights, w.momentum, o.momentum || muon, w, arena, o, sz.elongated ? 4 : 2);
  take_rows(w, arena, o);
  w.z[0] = w.d[0];
  w.z[1] = w.d[1];
  w.y = arena.take(static_cast<int64_t>(o.chunk) * sz.vp);
  w.a = arena.take(sz.rp);
  if (!muon) {
    w.scores = arena.take(static_cast<int64_t>(o.chunk) * sz.rp);
    w.cf = arena.take(static_cast<int64_t>(o.chunk) * sz.rp);
  }
  return on_chip;
}

// The update's buffers; true if all are in shared memory. Rows of keys, features and hidden vectors
// have one row more: the query's. Newton-Schulz's matrices are held as the state's tensors have
// them, [out, in].
__host__ __device__ __forceinline__ bool take_update(OmegaWork& w, OmegaArena& arena,
                                                     const OmegaOptions& o) {
  const OmegaSizes& sz = o.sizes;
  const int64_t rows = sz.rows;
  w = OmegaWork();
  w.alpha = arena.take(1);
  w.theta = arena.take(1);
  w.eta = arena.take(1);
  w.line = arena.take(kOmegaWarps);
  w.c = arena.take(kScaleSlots);
  w.a = arena.take(rows);
  w.y = arena.take(sz.vp);
  w.k = arena.take((rows + 1) * sz.kp);
  if (o.degree > 0) {
    w.lift.tile = arena.take((rows + 1) * sz.tp);
    w.lift.indices = reinterpret_cast<uint32_t*>(arena.take(2 * static_cast<int64_t>(o.features)));
    w.lift.roots = arena.take(o.features);
  }
  int64_t largest = 0;
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = sz.matrix[l];
    w.d[l] = arena.take(rows * m.ld);
    const int64_t matrix = static_cast<int64_t>(m.out) * leading(m.in);
    largest = matrix > largest ? matrix : largest;
  }
  if (is_deep(o)) {
    w.h = arena.take((rows + 1) * sz.fp);
    w.b = arena.take(rows * sz.fp);
    w.queries[0] = arena.take(sz.fp);
    w.queries[1] = is_gated(o) ? arena.take(sz.fp) : nullptr;
  }
  if (o.schedule.steps == 0) return arena.device_used == 0;
  const int64_t side = sz.side;
  for (int i = 0; i < (sz.elongated ? 4 : 2); ++i)
    w.squares[i] = arena.take(side * leading(sz.side));
  for (float*& matrix : w.ns) matrix = arena.take(largest);
  return arena.device_used == 0;
}

}  // namespace atlas::kernels::cuda
