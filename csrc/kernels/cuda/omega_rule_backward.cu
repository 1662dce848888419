#include "kernels/cuda/omega_backward.cuh"
#include "kernels/cuda/omega_launch.cuh"

namespace atlas::kernels::cuda {

cudaError_t omega_rule_backward(const OmegaBackward& args, const OmegaPlan& plan,
                                cudaStream_t stream) {
  if (args.options.schedule.steps > 0)
    return launch_planned<omega_backward_kernel<Arithmetic::split_tf32, true>,
                          omega_backward_kernel<Arithmetic::simple, true>>(args, plan, stream);
  return launch_planned<omega_backward_kernel<Arithmetic::tf32, false>,
                        omega_backward_kernel<Arithmetic::simple, false>>(args, plan, stream);
}

}  // namespace atlas::kernels::cuda
