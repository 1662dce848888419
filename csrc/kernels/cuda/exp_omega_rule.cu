#include "kernels/cuda/exp_omega_forward.cuh"
#include "kernels/cuda/exp_omega_plan.h"
#include "kernels/cuda/omega_launch.cuh"

namespace atlas::kernels::cuda {

cudaError_t exp_omega_rule(const ExpOmegaForward& args, const OmegaPlan& plan,
                           cudaStream_t stream) {
  return launch_planned<exp_omega_forward_kernel<Arithmetic::tf32>,
                        exp_omega_forward_kernel<Arithmetic::simple>>(args, plan, stream);
}

}  // namespace atlas::kernels::cuda
