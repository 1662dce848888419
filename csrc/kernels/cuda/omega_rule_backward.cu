#include "kernels/cuda/omega_backward.cuh"
#include "kernels/cuda/omega_launch.cuh"

namespace atlas::kernels::cuda {

cudaError_t omega_rule_backward(const OmegaBackward& given, const OmegaPlan& plan,
                                cudaStream_t stream) {
  OmegaBackward args = given;
  args.stage = OmegaStage::all;
  args.parts = plan.parts;
  if (plan.team.rows > 0) return omega_team_backward(args, plan, stream);
  if (plan.parts > 1) {
    args.stage = OmegaStage::states;
    OmegaPlan walk = plan;
    walk.blocks /= plan.parts;
    const cudaError_t error =
        launch_planned<omega_backward_kernel<Arithmetic::tf32, false>,
                       omega_backward_kernel<Arithmetic::simple, false>>(args, walk, stream);
    if (error != cudaSuccess) return error;
    args.stage = OmegaStage::tokens;
  }
  if (args.options.schedule.steps > 0)
    return launch_planned<omega_backward_kernel<Arithmetic::split_tf32, true>,
                          omega_backward_kernel<Arithmetic::simple, true>>(args, plan, stream);
  return launch_planned<omega_backward_kernel<Arithmetic::tf32, false>,
                        omega_backward_kernel<Arithmetic::simple, false>>(args, plan, stream);
}

}  // namespace atlas::kernels::cuda
