#pragma once
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/omega_plan.h"

namespace atlas::kernels::cuda {

template <auto kKernel, class Args>
cudaError_t start_planned(const Args& args, const OmegaPlan& plan, cudaStream_t stream) {
  if (plan.residents > 1) {
    const cudaError_t status = prefer_shared_memory<kKernel>();
    if (status != cudaSuccess) return status;
  }
  const dim3 grid(static_cast<unsigned>(plan.blocks)), block(plan.threads);
  return launch<kKernel>(grid, block, plan.shared_bytes, stream, args);
}

// Starts one of a pass's two kernels as planned; the arguments come without sizes and space.
template <auto kOnTensorCores, auto kSimple, class Args>
cudaError_t launch_planned(Args args, const OmegaPlan& plan, cudaStream_t stream) {
  args.options = sized(args.options, plan.slices, plan.residents);
  args.space = omega_space(plan, args.space.device);
  return plan.tensor_cores ? start_planned<kOnTensorCores>(args, plan, stream)
                           : start_planned<kSimple>(args, plan, stream);
}

}  // namespace atlas::kernels::cuda
