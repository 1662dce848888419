#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/omega_plan.h"
#include "kernels/cuda/omega_update.cuh"

namespace atlas::kernels::cuda {

// Positions, once all heads have read them.
ATLAS_KERNEL void __launch_bounds__(kOmegaThreads)
    omega_advance_kernel(ATLAS_GRID_CONSTANT const OmegaUpdate args) {
  const int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (row >= args.rows) return;
  if (int64_t* const at = position_of(args, slot_of(args, row))) ++*at;
}

cudaError_t omega_rule_update(const OmegaUpdate& args, const OmegaPlan& plan, cudaStream_t stream) {
  OmegaUpdate planned = args;
  planned.options = sized(args.options, 1);
  planned.space = omega_space(plan, args.space.device);
  const dim3 grid(static_cast<unsigned>(plan.blocks)), block(plan.threads);
  cudaError_t status;
  if (args.options.schedule.steps == 0)
    status = launch<omega_update_kernel<Arithmetic::simple, false>>(grid, block, plan.shared_bytes,
                                                                    stream, planned);
  else if (plan.tensor_cores)
    status = launch<omega_update_kernel<Arithmetic::split_tf32, true>>(
        grid, block, plan.shared_bytes, stream, planned);
  else
    status = launch<omega_update_kernel<Arithmetic::simple, true>>(grid, block, plan.shared_bytes,
                                                                   stream, planned);
  if (status != cudaSuccess) return status;
  const dim3 rows(static_cast<unsigned>((args.rows + kOmegaThreads - 1) / kOmegaThreads));
  return launch<omega_advance_kernel>(rows, dim3(kOmegaThreads), 0, stream, planned);
}

}  // namespace atlas::kernels::cuda
