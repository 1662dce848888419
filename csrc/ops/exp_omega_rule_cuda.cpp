#include "ops/exp_omega_rule_cuda.h"

#include <torch/csrc/stable/library.h>

namespace atlas::ops {
namespace {

namespace cuda_kernels = kernels::cuda;

// Positions are read by the kernel alone, so nothing waits for the device and the call can be
// captured in a graph. A sequence whose position is negative or beyond the state's capacity, or for
// whose tokens the final state has no room, gets NaN, and -1 as its final position.
ExpOmegaOutputs exp_omega_rule_cuda(
    const Tensor& q, const Tensor& k, const Tensor& v,  // [B, T, H, K], [B, T, H, K], [B, T, H, V]
    const Tensor& gamma, const Tensor& eta,             // [B, T, H, W], [B, T, H]
    const MaybeTensor& log_alpha, const MaybeTensor& log_theta,  // [B, T, H]
    const Tensors& weights,                                      // each [N, H, out, in]
    const MaybeTensor& keys, const Tensors& coefficients,        // each [N, capacity, H, .]
    const Tensors& momentum, const Tensors& chunk_weights, const MaybeTensor& k_tail,
    const MaybeTensor& v_tail,      // [N, W-1, H, K], [N, W-1, H, V]
    const MaybeTensor& position,    // [N]
    const MaybeTensor& cu_seqlens,  // [N + 1]
    const std::string& objective, const std::string& activation, bool residual,
    const std::string& normalize, double scale, int64_t chunk_size,
    std::optional<int64_t> extra_rows, bool save_for_backward, bool allow_tf32) {
  const ExpOmegaTokens tokens{q, k, v, gamma, eta, log_alpha, log_theta};
  const ExpOmegaStateArguments state{weights,       keys,   coefficients, momentum,
                                     chunk_weights, k_tail, v_tail,       position};
  const ExpOmegaRuleOptions given{objective, activation, residual, normalize, scale, chunk_size};
  const ExpOmegaCudaCall call("exp_omega_rule", tokens, state, cu_seqlens, given);
  const CudaContext& cuda = call.cuda;
  cuda_kernels::ExpOmegaForward args{};
  args.options = call.options;
  args.in = call.in;
  ExpOmegaOutputs result = new_exp_outputs(args, tokens, state, call.shape, extra_rows,
                                           ScalarType::Float, NewKernelResult{cuda, call.op});
  if (extra_rows)
    args.position = static_cast<int64_t*>(cuda.write(std::get<8>(result), "final_position"));
  if (save_for_backward) {
    std::get<9>(result) = new_saved(call.shape, given, q, log_theta.has_value(), ScalarType::Float);
    args.saved = call.saved(std::get<9>(result), true);
  }
  if (call.items() == 0) return result;
  const cuda_kernels::OmegaPlan plan = cuda_kernels::exp_omega_rule_plan(
      cuda_kernels::OmegaPass::forward, args.options, call.dtype, allow_tf32, call.items());
  const Tensor memory = omega_scratch(q, plan);
  args.space.device = static_cast<float*>(cuda.scratch(memory, "scratch"));
  check_launch(cuda_kernels::exp_omega_rule(args, plan, cuda.stream()), call.op);
  return result;
}

}  // namespace

ATLAS_CUDA_LIBRARY_IMPL(library) {
  library.impl("exp_omega_rule", TORCH_BOX(&exp_omega_rule_cuda));
}

}  // namespace atlas::ops
