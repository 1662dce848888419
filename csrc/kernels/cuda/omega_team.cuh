#pragma once
// Teams: where a deep memory does not fit on chip and (sequence, head) pairs are few, blocks share
// every chunk of a pair. A chunk is a short sequence of steps, each a launch; within a step blocks
// exchange nothing, and from one to the next everything passes through buffers in device memory,
// laid out as a single block would have them. A block has some rows of the window, some tokens or a
// part of the memory, and runs the same code on them: columns of a matrix or, where phi is lifted,
// some of its features, so that no two blocks make the same ones for a write.
#include "kernels/cuda/omega_grads.cuh"
#include "kernels/cuda/omega_memory.cuh"

namespace atlas::kernels::cuda {

// In the order of a call: begin; for every chunk rebuild, tokens and, in the backward, rows and
// states; end.
//   begin    parts: the state; one more block: the backward's sums
//   rebuild  window rows: their errors; one more block: the scans
//   tokens   tokens: the reads (their adjoint); forward: parts: the state that the chunk leaves
//   rows     window rows: the adjoint of writes and errors; parts: (gradient, state) dots
//   states   parts: the adjoint of the state; one more block: the scans' adjoint, results
//   end      parts: the state; one more block: all else
enum class TeamStep : int { begin, rebuild, tokens, rows, states, end };

struct TeamLaunch {
  OmegaTeam team;
  TeamStep step;
  int64_t turn;  // counts an item's chunks, from its first one or (backward) from its last one
  int ranks;     // blocks of an item
};

__host__ __device__ __forceinline__ int slabs(int count, int each) {
  return (count + each - 1) / each;
}

__host__ __device__ __forceinline__ int row_slabs(const OmegaOptions& o, const OmegaTeam& team) {
  return slabs(o.sizes.rows, team.rows);
}

__host__ __device__ __forceinline__ int token_slabs(const OmegaOptions& o, const OmegaTeam& team) {
  return slabs(o.chunk, team.rows);
}

// Parts of matrix l, and of all.
__host__ __device__ __forceinline__ int part_count(const OmegaOptions& o, const OmegaTeam& team,
                                                   int l) {
  const OmegaMatrix& m = o.sizes.matrix[l];
  return sees_phi(o, l) && o.degree > 0 ? slabs(m.in, team.features) : slabs(m.out, team.columns);
}

__host__ __device__ __forceinline__ int part_count(const OmegaOptions& o, const OmegaTeam& team) {
  int count = 0;
  for (int l = 0; l < o.matrices; ++l) count += part_count(o, team, l);
  return count;
}

// Blocks of an item.
inline int team_ranks(TeamStep step, bool backward, const OmegaOptions& o, const OmegaTeam& team) {
  const int parts = part_count(o, team);
  switch (step) {
    case TeamStep::rebuild:
      return row_slabs(o, team) + 1;
    case TeamStep::tokens:
      return token_slabs(o, team) + (backward ? 0 : parts);
    case TeamStep::rows:
      return row_slabs(o, team) + parts;
    default:
      return parts + 1;
  }
}

// Most of a launch; without the step `rows` of those that multiply matrices.
inline int most_team_ranks(bool backward, bool all, const OmegaOptions& o, const OmegaTeam& team) {
  int most = 0;
  for (const TeamStep step :
       {TeamStep::rebuild, TeamStep::tokens, TeamStep::rows, TeamStep::states}) {
    if (step == TeamStep::rows && !(backward && all)) continue;
    const int ranks = team_ranks(step, backward, o, team);
    most = most > ranks ? most : ranks;
  }
  return most;
}

// What a team has beside OmegaWork and OmegaGrads.
struct TeamWork {
  float *weights, *momentum;  // forward: the state that enters the chunk; w has the one that leaves
  float* scales;              // backward: every row slab's g.scales, one behind the other
  float* dots;                // backward: every part's StateDots
};

// The forward's buffers for the chunk of this number: states take turns.
__host__ __device__ __forceinline__ void take_team(OmegaWork& w, TeamWork& team, OmegaArena& arena,
                                                   const OmegaOptions& o, int64_t number) {
  take_forward(w, arena, o);
  float* const weights = arena.take(o.sizes.state);
  float* const momentum = o.momentum ? arena.take(o.sizes.state) : nullptr;
  const bool odd = number % 2 != 0;
  team = {odd ? weights : w.weights, odd ? momentum : w.momentum, nullptr, nullptr};
  w.weights = odd ? w.weights : weights;
  w.momentum = odd ? w.momentum : momentum;
}

__host__ __device__ __forceinline__ void take_team(OmegaWork& w, OmegaGrads& g, TeamWork& team,
                                                   OmegaArena& arena, const OmegaOptions& o,
                                                   const OmegaTeam& given, bool own_reference,
                                                   int threads) {
  const int64_t pairs = static_cast<int64_t>(o.chunk) * o.sizes.rp;
  take_backward(w, g, arena, o, own_reference, threads);
  g.pairs[last_matrix(o)] = arena.take(pairs);
  g.last_scores = arena.take(pairs);
  float* const scales =
      arena.take(static_cast<int64_t>(row_slabs(o, given)) * kScaleSlots * threads);
  team = {nullptr, nullptr, scales, arena.take(3 * part_count(o, given))};
}

// Where the item's team works. Blocks' own buffers come first.
__device__ __forceinline__ OmegaArena team_arena(const OmegaSpace& space, const OmegaTeam& team,
                                                 int64_t index) {
  return {nullptr, space.device + team.blocks * space.device_floats + index * team.floats, 0};
}

__device__ __forceinline__ int64_t first_chunk(const OmegaOptions& o, const OmegaItem& item) {
  return o.chunk_size - item.position % o.chunk_size;
}

__device__ __forceinline__ int64_t chunks_of(const OmegaOptions& o, const OmegaItem& item) {
  if (item.length == 0) return 0;
  const int64_t rest = item.length - smaller(first_chunk(o, item), item.length);
  return 1 + (rest + o.chunk_size - 1) / o.chunk_size;
}

__device__ __forceinline__ OmegaChunk numbered_chunk(const OmegaOptions& o, const OmegaItem& item,
                                                     int64_t number) {
  return chunk_from(o, item, number == 0 ? 0 : first_chunk(o, item) + (number - 1) * o.chunk_size);
}

__device__ __forceinline__ LayerPart part_of(const OmegaOptions& o, const OmegaTeam& team,
                                             int rank) {
  int l = 0;
  while (rank >= part_count(o, team, l)) rank -= part_count(o, team, l++);
  LayerPart part = whole_matrix(o, l);
  if (sees_phi(o, l) && o.degree > 0) {
    part.first = rank * team.features;
    part.inputs = min(team.features, part.inputs - part.first);
  } else {
    part.from = rank * team.columns;
    part.outputs = min(team.columns, part.outputs - part.from);
  }
  return part;
}

__device__ __forceinline__ void move_on(float*& pointer, int floats) {
  if (pointer != nullptr) pointer += floats;
}

// Window rows [first, first + count) alone.
__device__ __forceinline__ void narrow_to_rows(OmegaWork& w, const OmegaOptions& o, int first,
                                               int count) {
  const OmegaSizes& sz = o.sizes;
  w.chunk.overhang -= first;
  w.chunk.rows = count;
  w.k += first * sz.kp;
#pragma unroll
  for (int l = 0; l < kOmegaMatrices; ++l) move_on(w.d[l], first * sz.matrix[l].ld);
  move_on(w.z[0], first * sz.fp);
  move_on(w.z[1], first * sz.fp);
  w.h += first * sz.fp;
  w.b += first * sz.fp;
  w.a += first;
  w.cf += first;
}

__device__ __forceinline__ void narrow_to_rows(OmegaGrads& g, const OmegaOptions& o, int first) {
  const OmegaSizes& sz = o.sizes;
#pragma unroll
  for (int l = 0; l < kOmegaMatrices; ++l) {
    move_on(g.d[l], first * sz.matrix[l].ld);
    move_on(g.pairs[l], first);
  }
  g.h += first * sz.fp;
  g.cf += first;
  g.scores += first;
  g.last_scores += first;
  g.a_last += first;
  g.wide += first * widest_row(o);
  g.wide2 += first * widest_row(o);
}

// Tokens [first, first + count) alone; all rows of the window.
__device__ __forceinline__ void narrow_to_tokens(OmegaWork& w, const OmegaOptions& o, int first,
                                                 int count) {
  const OmegaSizes& sz = o.sizes;
  w.chunk.first += first;
  w.chunk.position += first;
  w.chunk.tokens = count;
  w.chunk.overhang += first;
  w.q += first * sz.kp;
  move_on(w.queries[0], first * sz.fp);
  move_on(w.queries[1], first * sz.fp);
  w.query_h += first * sz.fp;
  move_on(w.y, first * sz.vp);
  w.scores += first * sz.rp;
  w.cf += first * sz.rp;
  w.s += first;
  w.m += first;
}

__device__ __forceinline__ void narrow_to_tokens(OmegaGrads& g, const OmegaOptions& o, int first) {
  const OmegaSizes& sz = o.sizes;
  g.y += first * sz.vp;
  g.q += first * sz.kp;
  g.query_h += first * sz.fp;
  move_on(g.queries[0], first * sz.fp);
  move_on(g.queries[1], first * sz.fp);
#pragma unroll
  for (int l = 0; l < kOmegaMatrices; ++l) move_on(g.pairs[l], first * sz.rp);
  g.cf += first * sz.rp;
  g.scores += first * sz.rp;
  g.last_scores += first * sz.rp;
  g.other += first * sz.rp;
  g.wide += first * widest_row(o);
  g.s += first;
  g.m += first;
}

// The step `rebuild`: rows of keys, values and errors, or (the last rank) the scans; of A all rows
// or (`last_only`) the last one. A barrier comes before.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void rebuild_rows(OmegaWork& w, const OmegaOptions& o,
                                             const OmegaInputs& in, const OmegaTeam& team, int rank,
                                             bool last_only) {
  if (rank == row_slabs(o, team)) {
    load_gates(w, o, in);
    __syncthreads();
    scan_chunk(w, o, in, last_only);
    return;
  }
  const int first = rank * team.rows, count = min(team.rows, w.chunk.rows - first);
  if (count <= 0) return;
  __syncthreads();
  if (thread_id() == 0) narrow_to_rows(w, o, first, count);
  __syncthreads();
  load_window(w, o, in);
  memory_signals<kArithmetic>(w, o);
}

}  // namespace atlas::kernels::cuda
