#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/omega_backward.cuh"
#include "kernels/cuda/omega_plan.h"

namespace atlas::kernels::cuda {
namespace {

template <Arithmetic kTensorCores, bool kMuon>
cudaError_t start(const OmegaBackward& args, const OmegaPlan& plan, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(plan.blocks)), block(plan.threads);
  if (plan.tensor_cores)
    return launch<omega_backward_kernel<kTensorCores, kMuon>>(grid, block, plan.shared_bytes,
                                                              stream, args);
  return launch<omega_backward_kernel<Arithmetic::simple, kMuon>>(grid, block, plan.shared_bytes,
                                                                  stream, args);
}

}  // namespace

cudaError_t omega_rule_backward(const OmegaBackward& args, const OmegaPlan& plan,
                                cudaStream_t stream) {
  OmegaBackward planned = args;
  planned.options = sized(args.options, plan.slices);
  planned.space = omega_space(plan, args.space.device);
  return args.options.schedule.steps > 0
             ? start<Arithmetic::split_tf32, true>(planned, plan, stream)
             : start<Arithmetic::tf32, false>(planned, plan, stream);
}

}  // namespace atlas::kernels::cuda
