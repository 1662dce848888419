#include "ops/omega_rule_cuda.h"

#include <torch/csrc/stable/library.h>

namespace atlas::ops {
namespace {

namespace cuda_kernels = kernels::cuda;

OmegaOutputs omega_rule_cuda(const Tensor& q, const Tensor& k,
                             const Tensor& v,  // [B, T, H, K], [B, T, H, K], [B, T, H, V]
                             const Tensor& gamma, const Tensor& eta,  // [B, T, H, W], [B, T, H]
                             const MaybeTensor& log_alpha,
                             const MaybeTensor& log_theta,  // [B, T, H]
                             const Tensors& weights, const Tensors& momentum,
                             const Tensors& chunk_weights,  // each [N, H, out, in]
                             const MaybeTensor& k_tail,
                             const MaybeTensor& v_tail,          // [N, W-1, H, K], [N, W-1, H, V]
                             const MaybeTensor& position,        // [N]
                             const MaybeTensor& feature_scales,  // [degree + 1]
                             const MaybeTensor& ns_table,        // [ns_steps, 3]
                             const MaybeTensor& cu_seqlens,      // [N + 1]
                             const std::string& objective, const std::string& activation,
                             bool residual, int64_t degree, int64_t ns_steps,
                             const std::string& ns_schedule, const std::string& ns_scale,
                             int64_t ns_every, int64_t chunk_size, bool output_final_state,
                             bool save_checkpoints, bool allow_tf32) {
  const OmegaCudaCall call("omega_rule", q, k, v, gamma, eta, log_alpha, log_theta, weights,
                           momentum, chunk_weights, k_tail, v_tail, position, feature_scales,
                           ns_table, cu_seqlens,
                           {objective, activation, residual, degree, ns_steps, ns_schedule,
                            ns_scale, ns_every, chunk_size});
  const OmegaShape& shape = call.shape;
  const CudaContext& cuda = call.cuda;
  cuda_kernels::OmegaForward args{};
  args.options = call.options;
  args.in = call.in;
  const OmegaGiven given{q,         k,       v,        gamma,         eta,    log_alpha,
                         log_theta, weights, momentum, chunk_weights, k_tail, v_tail};
  OmegaOutputs result =
      new_outputs(args, given, shape, {output_final_state, save_checkpoints, call.checkpoints},
                  ScalarType::Float, NewKernelResult{cuda, call.op});
  if (output_final_state)
    args.position = static_cast<int64_t*>(cuda.write(std::get<6>(result), "final_position"));
  if (call.items() == 0) return result;
  const cuda_kernels::OmegaPlan plan =
      cuda_kernels::omega_rule_plan(cuda_kernels::OmegaPass::forward, args.options, call.dtype,
                                    allow_tf32, call.items(), call.chunks(), call.packed());
  const Tensor memory = omega_scratch(q, plan);
  args.space.device = static_cast<float*>(cuda.scratch(memory, "scratch"));
  check_launch(cuda_kernels::omega_rule(args, plan, cuda.stream()), call.op);
  return result;
}

}  // namespace

ATLAS_CUDA_LIBRARY_IMPL(library) { library.impl("omega_rule", TORCH_BOX(&omega_rule_cuda)); }

}  // namespace atlas::ops
