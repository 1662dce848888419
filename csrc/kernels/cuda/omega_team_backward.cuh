#pragma once
// The backward pass by teams (omega_team.cuh): a deep memory without Newton-Schulz.
#include "kernels/cuda/omega_backward.cuh"
#include "kernels/cuda/omega_team.cuh"

namespace atlas::kernels::cuda {

// Lays out the block's buffers and finds its chunk. A barrier comes before and after.
__device__ __forceinline__ void set_team_backward(OmegaWork& w, OmegaGrads& g, TeamWork& team,
                                                  const OmegaBackward& args,
                                                  const TeamLaunch& launch, const OmegaItem& item,
                                                  int64_t index, int64_t number, float* shared) {
  const OmegaOptions& o = args.options;
  const bool given = args.in.chunk_weights[0].present;
  if (thread_id() == 0) {
    OmegaArena arena = team_arena(args.space, launch.team, index);
    take_team(w, g, team, arena, o, launch.team, given, block_threads());
    OmegaArena own = block_arena(shared, args.space);
    take_own(w, own, o);
    g.scales = team.scales;
    set_wants(g, args);
    w.item = item;
    if (number >= 0) w.chunk = numbered_chunk(o, item, number);
  }
  __syncthreads();
  if (number >= 0) {
    const int64_t checkpoint = item.checkpoint + number;
    set_checkpoint(w.before, args.weights_checkpoints, o, item, checkpoint);
    if (o.momentum) set_checkpoint(w.rate, args.momentum_checkpoints, o, item, checkpoint);
    if (number == 0 && given)
      set_memory(w.reference, o, args.in.chunk_weights, item);
    else
      set_checkpoint(w.reference, args.weights_checkpoints, o, item, checkpoint);
  }
  if (number >= 0) begin_lift(w, o);
  __syncthreads();
}

__device__ __forceinline__ void begin_team_backward(const OmegaWork& w, const OmegaGrads& g,
                                                    const TeamWork& team_work,
                                                    const OmegaBackward& args,
                                                    const OmegaTeam& team, int rank) {
  const OmegaOptions& o = args.options;
  if (rank < part_count(o, team)) {
    begin_states(w, g, args, part_of(o, team, rank));
    return;
  }
  begin_sums(w, g, args);
  each(row_slabs(o, team) * kScaleSlots * block_threads(), [&](int i) { team_work.scales[i] = 0; });
}

template <Arithmetic kArithmetic>
__device__ __forceinline__ void team_tokens_backward(OmegaWork& w, OmegaGrads& g,
                                                     const OmegaBackward& args,
                                                     const OmegaTeam& team, int rank) {
  const OmegaOptions& o = args.options;
  const int first = rank * team.rows, count = min(team.rows, w.chunk.tokens - first);
  if (count <= 0) return;
  __syncthreads();
  if (thread_id() == 0) {
    narrow_to_tokens(w, o, first, count);
    narrow_to_tokens(g, o, first);
    g.scales += rank * kScaleSlots * block_threads();
  }
  __syncthreads();
  load_queries(w, o, args.in);
  load_output_grads(w, g, args);
  __syncthreads();
  rebuilt_last_layer_queries<kArithmetic>(w, g, o);
  first_layer_queries<kArithmetic>(w, g, o);
  residual_to_queries(w, g, o);
}

template <Arithmetic kArithmetic>
__device__ __forceinline__ void team_rows_backward(OmegaWork& w, OmegaGrads& g,
                                                   const TeamWork& team_work,
                                                   const OmegaBackward& args, const OmegaTeam& team,
                                                   int rank) {
  const OmegaOptions& o = args.options;
  const int before = row_slabs(o, team);
  if (rank >= before) {
    StateDots dots;
    add_state_dots(dots, w, g, o, part_of(o, team, rank - before));
    dots = block_sum(dots, w.line);
    if (thread_id() > 0) return;
    float* const to = team_work.dots + 3 * (rank - before);
    to[0] = dots.m;
    to[1] = dots.s;
    to[2] = dots.p;
    return;
  }
  const int first = rank * team.rows, count = min(team.rows, w.chunk.rows - first);
  if (count <= 0) return;
  __syncthreads();
  if (thread_id() == 0) {
    narrow_to_rows(w, o, first, count);
    narrow_to_rows(g, o, first);
    g.scales += rank * kScaleSlots * block_threads();
  }
  __syncthreads();
  last_layer_rows<kArithmetic>(w, g, o);
  first_layer_rows<kArithmetic>(w, g, o, key_rows(w, g, o));
  errors_to_rows(w, g, o);
}

template <Arithmetic kArithmetic>
__device__ __forceinline__ void team_states_backward(const OmegaWork& w, const OmegaGrads& g,
                                                     const TeamWork& team_work,
                                                     const OmegaBackward& args,
                                                     const OmegaTeam& team, int rank,
                                                     bool own_reference) {
  const OmegaOptions& o = args.options;
  const int parts = part_count(o, team);
  if (rank < parts) {
    const LayerPart part = part_of(o, team, rank);
    float* const reference = own_reference ? g.reference : g.weights;
    states_backward<kArithmetic>(w, g, o, part);
    signals_to_reference<kArithmetic>(w, g, o, reference, part);
    if (keeps_reference(w, o))
      add_tensor(reference, args.grad_final_chunk_weights, o, w.item, part);
    return;
  }
  if (thread_id() < kWarp) {
    StateDots dots;
    for (int i = lane_id(); i < parts; i += kWarp) {
      const float* const from = team_work.dots + 3 * i;
      dots = {dots.m + from[0], dots.s + from[1], dots.p + from[2]};
    }
    dots = {group_sum(dots.m), group_sum(dots.s), group_sum(dots.p)};
    if (lane_id() == 0) use_state_dots(w, g, dots);
  }
  __syncthreads();
  scan_backward(w, g, o);
  end_chunk(w, g, args, chunk_tokens_before(o, w.item, w.chunk.first));
}

__device__ __forceinline__ void end_team_backward(const OmegaWork& w, const OmegaGrads& g,
                                                  const OmegaBackward& args, const OmegaTeam& team,
                                                  int rank) {
  const OmegaOptions& o = args.options;
  if (rank < part_count(o, team)) {
    end_states(w, g, args, part_of(o, team, rank));
    return;
  }
  const int scales = kScaleSlots * block_threads(), count = row_slabs(o, team);
  each(scales, [&](int i) {
    for (int slab = 1; slab < count; ++slab) g.scales[i] += g.scales[slab * scales + i];
  });
  __syncthreads();
  end_sums(w, g, args);
}

template <Arithmetic kArithmetic>
ATLAS_KERNEL void __launch_bounds__(kOmegaThreads, 1)
    omega_team_backward_kernel(ATLAS_GRID_CONSTANT const OmegaBackward args,
                               ATLAS_GRID_CONSTANT const TeamLaunch launch) {
  if constexpr (kCompiledCapability < kArithmeticCapability<kArithmetic>) {
    __trap();  // never launched there
    return;
  }
  DYNAMIC_SHARED(float, shared);
  SHARED_ARRAY(OmegaWork, work, 1);
  SHARED_ARRAY(OmegaGrads, grads, 1);
  SHARED_ARRAY(TeamWork, team_work, 1);
  OmegaWork& w = work[0];
  OmegaGrads& g = grads[0];
  const OmegaOptions& o = args.options;
  const OmegaTeam& team = launch.team;
  const unsigned ranks = static_cast<unsigned>(launch.ranks);
  const int64_t index = blockIdx.x / ranks;
  const int rank = static_cast<int>(blockIdx.x % ranks);
  const OmegaItem item = omega_item(o, args.in, index);
  const bool outside = launch.step == TeamStep::begin || launch.step == TeamStep::end;
  const int64_t number = outside ? -1 : chunks_of(o, item) - 1 - launch.turn;
  if (!outside && number < 0) return;
  set_team_backward(w, g, team_work[0], args, launch, item, index, number, shared);
  const bool own_reference = number == 0 && args.in.chunk_weights[0].present;
  switch (launch.step) {
    case TeamStep::begin:
      begin_team_backward(w, g, team_work[0], args, team, rank);
      break;
    case TeamStep::rebuild:
      if (rank == row_slabs(o, team))
        each(w.chunk.tokens, [&](int t) { g.p[t] = g.s[t] = g.m[t] = 0; });
      rebuild_rows<kArithmetic>(w, o, args.in, team, rank, false);
      break;
    case TeamStep::tokens:
      team_tokens_backward<kArithmetic>(w, g, args, team, rank);
      break;
    case TeamStep::rows:
      team_rows_backward<kArithmetic>(w, g, team_work[0], args, team, rank);
      break;
    case TeamStep::states:
      team_states_backward<kArithmetic>(w, g, team_work[0], args, team, rank, own_reference);
      break;
    case TeamStep::end:
      end_team_backward(w, g, args, team, rank);
      break;
  }
}

}  // namespace atlas::kernels::cuda
