#include "kernels/cuda/omega_team_backward.cuh"
#include "kernels/cuda/omega_team_launch.cuh"

namespace atlas::kernels::cuda {

cudaError_t omega_team_backward(const OmegaBackward& args, const OmegaPlan& plan,
                                cudaStream_t stream) {
  return launch_team<omega_team_backward_kernel<Arithmetic::tf32>,
                     omega_team_backward_kernel<Arithmetic::simple>>(args, plan, true, stream);
}

}  // namespace atlas::kernels::cuda
