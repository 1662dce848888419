#pragma once
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/omega_plan.h"

namespace atlas::kernels::cuda {

// Starts one of a pass's two kernels as planned; the arguments come without sizes and space.
template <auto kOnTensorCores, auto kSimple, class Args>
cudaError_t launch_planned(Args args, const OmegaPlan& plan, cudaStream_t stream) {
  args.options = sized(args.options, plan.slices, plan.residents);
  args.space = omega_space(plan, args.space.device);
  const dim3 grid(static_cast<unsigned>(plan.blocks)), block(plan.threads);
  return plan.tensor_cores ? launch<kOnTensorCores>(grid, block, plan.shared_bytes, stream, args)
                           : launch<kSimple>(grid, block, plan.shared_bytes, stream, args);
}

}  // namespace atlas::kernels::cuda
