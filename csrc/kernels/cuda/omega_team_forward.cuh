#pragma once
// The forward pass by teams (omega_team.cuh): a deep memory without Newton-Schulz.
#include "kernels/cuda/omega_forward.cuh"
#include "kernels/cuda/omega_team.cuh"

namespace atlas::kernels::cuda {

// Lays out the block's buffers and finds its chunk. A barrier comes before and after.
__device__ __forceinline__ void set_team_forward(OmegaWork& w, TeamWork& team,
                                                 const OmegaForward& args, const TeamLaunch& launch,
                                                 const OmegaItem& item, int64_t index,
                                                 int64_t number, int64_t chunks, float* shared) {
  const OmegaOptions& o = args.options;
  if (thread_id() == 0) {
    OmegaArena arena = team_arena(args.space, launch.team, index);
    take_team(w, team, arena, o, number);
    OmegaArena own = block_arena(shared, args.space);
    take_own(w, own, o);
    w.item = item;
    if (number < chunks) w.chunk = numbered_chunk(o, item, number);
  }
  __syncthreads();
  set_memory(w.before, o, team.weights);
  if (o.momentum) set_memory(w.rate, o, team.momentum);
  // At the end that of the last chunk, whose state is the one that was not written last.
  const bool begins = number == 0 || (launch.step == TeamStep::end && chunks == 1);
  if (begins && args.in.chunk_weights[0].present)
    set_memory(w.reference, o, args.in.chunk_weights, item);
  else
    set_memory(w.reference, o,
               launch.step == TeamStep::end && chunks > 0 ? w.weights : team.weights);
  if (launch.step == TeamStep::rebuild || launch.step == TeamStep::tokens) begin_lift(w, o);
  __syncthreads();
}

// The state with which the call begins.
__device__ __forceinline__ void begin_team_forward(const TeamWork& team, const OmegaForward& args,
                                                   const OmegaItem& item, const LayerPart& part) {
  const OmegaOptions& o = args.options;
  load_matrix(team.weights, args.in.weights[part.l], o, item, part);
  if (o.momentum) load_matrix(team.momentum, args.in.momentum[part.l], o, item, part);
}

template <Arithmetic kArithmetic>
__device__ __forceinline__ void team_tokens(OmegaWork& w, const OmegaForward& args,
                                            const OmegaTeam& team, int64_t number, int rank) {
  const OmegaOptions& o = args.options;
  const int tokens = token_slabs(o, team);
  if (rank < tokens) {
    const int first = rank * team.rows, count = min(team.rows, w.chunk.tokens - first);
    if (count <= 0) return;
    __syncthreads();
    if (thread_id() == 0) {
      narrow_to_tokens(w, o, first, count);
      w.chunk.rows = w.chunk.overhang + count;  // others they do not see
    }
    __syncthreads();
    load_queries(w, o, args.in);
    __syncthreads();
    dual_reads<kArithmetic>(w, o);
    store_output(w, args);
    return;
  }
  const LayerPart part = part_of(o, team, rank - tokens);
  const int64_t checkpoint = w.item.checkpoint + number;
  if (args.weights_checkpoints[0] != nullptr)
    save_matrix(args.weights_checkpoints[part.l], w.before.matrix[0].at, o, w.item, checkpoint,
                part);
  if (args.momentum_checkpoints[0] != nullptr)
    save_matrix(args.momentum_checkpoints[part.l], w.rate.matrix[0].at, o, w.item, checkpoint,
                part);
  if (w.chunk.first + w.chunk.tokens < w.item.length || args.weights[0] != nullptr)
    dual_advance<kArithmetic>(w, o, part);
}

template <Arithmetic kArithmetic>
ATLAS_KERNEL void __launch_bounds__(kOmegaThreads, 1)
    omega_team_forward_kernel(ATLAS_GRID_CONSTANT const OmegaForward args,
                              ATLAS_GRID_CONSTANT const TeamLaunch launch) {
  if constexpr (kCompiledCapability < kArithmeticCapability<kArithmetic>) {
    __trap();  // never launched there
    return;
  }
  DYNAMIC_SHARED(float, shared);
  SHARED_ARRAY(OmegaWork, work, 1);
  SHARED_ARRAY(TeamWork, team_work, 1);
  OmegaWork& w = work[0];
  const OmegaOptions& o = args.options;
  const unsigned ranks = static_cast<unsigned>(launch.ranks);
  const int64_t index = blockIdx.x / ranks;
  const int rank = static_cast<int>(blockIdx.x % ranks);
  const OmegaItem item = omega_item(o, args.in, index);
  const int64_t chunks = chunks_of(o, item);
  const bool outside = launch.step == TeamStep::begin || launch.step == TeamStep::end;
  if (!outside && launch.turn >= chunks) return;
  const int64_t number = launch.step == TeamStep::end ? chunks : launch.turn;
  set_team_forward(w, team_work[0], args, launch, item, index, number, chunks, shared);
  const int parts = part_count(o, launch.team);
  if (launch.step == TeamStep::begin) {
    if (rank < parts) begin_team_forward(team_work[0], args, item, part_of(o, launch.team, rank));
  } else if (launch.step == TeamStep::rebuild) {
    rebuild_rows<kArithmetic>(w, o, args.in, launch.team, rank, true);
  } else if (launch.step == TeamStep::tokens) {
    team_tokens<kArithmetic>(w, args, launch.team, number, rank);
  } else if (rank < parts) {
    store_final(w, args, part_of(o, launch.team, rank), true);
  } else {
    end_forward(w, args, item.checkpoint + chunks);
  }
}

}  // namespace atlas::kernels::cuda
