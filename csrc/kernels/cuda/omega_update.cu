#include "kernels/cuda/omega_launch.cuh"
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
  constexpr auto kPlain = omega_update_kernel<Arithmetic::simple, false>;
  const cudaError_t status =
      args.options.schedule.steps > 0
          ? launch_planned<omega_update_kernel<Arithmetic::split_tf32, true>,
                           omega_update_kernel<Arithmetic::simple, true>>(args, plan, stream)
          : launch_planned<kPlain, kPlain>(args, plan, stream);
  return status != cudaSuccess ? status : advance_positions(args, stream);
}

cudaError_t advance_positions(const OmegaUpdate& args, cudaStream_t stream) {
  const dim3 rows(static_cast<unsigned>((args.rows + kOmegaThreads - 1) / kOmegaThreads));
  return launch<omega_advance_kernel>(rows, dim3(kOmegaThreads), 0, stream, args);
}

}  // namespace atlas::kernels::cuda
