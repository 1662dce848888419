#include "kernels/cuda/omega_launch.cuh"
#include "kernels/cuda/omega_update.cuh"

namespace atlas::kernels::cuda {

cudaError_t omega_rule_update(const OmegaUpdate& args, const OmegaPlan& plan, cudaStream_t stream) {
  constexpr auto kPlain = omega_update_kernel<Arithmetic::simple, false>;
  return args.options.schedule.steps > 0
             ? launch_planned<omega_update_kernel<Arithmetic::split_tf32, true>,
                              omega_update_kernel<Arithmetic::simple, true>>(args, plan, stream)
             : launch_planned<kPlain, kPlain>(args, plan, stream);
}

}  // namespace atlas::kernels::cuda
