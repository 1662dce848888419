#pragma once
#include "kernels/cuda/omega_launch.cuh"
#include "kernels/cuda/omega_team.cuh"

namespace atlas::kernels::cuda {

// Starts a call's steps as planned, by one of a pass's two kernels; the host waits for none.
template <auto kOnTensorCores, auto kSimple, class Args>
cudaError_t launch_team(Args args, const OmegaPlan& plan, bool backward, cudaStream_t stream) {
  args.options = sized(args.options, 1);
  args.space = omega_space(plan, args.space.device);
  TeamLaunch next{plan.team, TeamStep::begin, 0, 0};
  const auto start = [&](TeamStep step, int64_t turn) {
    next.step = step;
    next.turn = turn;
    next.ranks = team_ranks(step, backward, args.options, plan.team);
    const dim3 grid(static_cast<unsigned>(plan.blocks * next.ranks)), block(plan.threads);
    return plan.tensor_cores
               ? launch<kOnTensorCores>(grid, block, plan.shared_bytes, stream, args, next)
               : launch<kSimple>(grid, block, plan.shared_bytes, stream, args, next);
  };
  cudaError_t error = start(TeamStep::begin, 0);
  for (int64_t turn = 0; turn < plan.team.chunks && error == cudaSuccess; ++turn)
    for (const TeamStep step :
         {TeamStep::rebuild, TeamStep::tokens, TeamStep::rows, TeamStep::states}) {
      if (step >= TeamStep::rows && !backward) break;
      if (error == cudaSuccess) error = start(step, turn);
    }
  return error == cudaSuccess ? start(TeamStep::end, 0) : error;
}

}  // namespace atlas::kernels::cuda
