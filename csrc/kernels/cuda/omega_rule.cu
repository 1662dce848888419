#include "kernels/cuda/omega_forward.cuh"
#include "kernels/cuda/omega_launch.cuh"

namespace atlas::kernels::cuda {

cudaError_t omega_rule(const OmegaForward& args, const OmegaPlan& plan, cudaStream_t stream) {
  if (plan.team.rows > 0) return omega_team_forward(args, plan, stream);
  if (args.options.schedule.steps > 0)
    return launch_planned<omega_forward_kernel<Arithmetic::split_tf32, true>,
                          omega_forward_kernel<Arithmetic::simple, true>>(args, plan, stream);
  return launch_planned<omega_forward_kernel<Arithmetic::tf32, false>,
                        omega_forward_kernel<Arithmetic::simple, false>>(args, plan, stream);
}

}  // namespace atlas::kernels::cuda
