#include "kernels/cuda/omega_team_forward.cuh"
#include "kernels/cuda/omega_team_launch.cuh"

namespace atlas::kernels::cuda {

cudaError_t omega_team_forward(const OmegaForward& args, const OmegaPlan& plan,
                               cudaStream_t stream) {
  return launch_team<omega_team_forward_kernel<Arithmetic::tf32>,
                     omega_team_forward_kernel<Arithmetic::simple>>(args, plan, false, stream);
}

}  // namespace atlas::kernels::cuda
