#include <torch/csrc/stable/library.h>

#include "ops/exp_omega_rule_cpu.h"

namespace atlas::ops {
namespace {

namespace cpu = kernels::cpu;

ExpOmegaGradients exp_omega_rule_backward_cpu(
    const MaybeTensor& grad_o,     // [B, T, H, V]
    const MaybeTensor& grad_keys,  // [N, capacity, H, K]
    const Tensors& grad_coefficients, const Tensors& grad_momentum, const Tensors& grad_weights,
    const Tensors& grad_chunk_weights, const MaybeTensor& grad_k_tail,
    const MaybeTensor& grad_v_tail,  // [N, W-1, H, K], [N, W-1, H, V]
    const Tensors& saved, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gamma,
    const Tensor& eta, const MaybeTensor& log_alpha, const MaybeTensor& log_theta,
    const Tensors& weights, const MaybeTensor& keys, const Tensors& coefficients,
    const Tensors& momentum, const Tensors& chunk_weights, const MaybeTensor& k_tail,
    const MaybeTensor& v_tail, const MaybeTensor& position, const MaybeTensor& cu_seqlens,
    const std::string& objective, const std::string& activation, bool residual,
    const std::string& normalize, double scale, int64_t chunk_size,
    std::optional<int64_t> extra_rows, int64_t grad_mask, [[maybe_unused]] bool allow_tf32) {
  const char* op = "exp_omega_rule_backward";
  const ExpOmegaTokens tokens{q, k, v, gamma, eta, log_alpha, log_theta};
  const ExpOmegaStateArguments state{weights,       keys,   coefficients, momentum,
                                     chunk_weights, k_tail, v_tail,       position};
  const ExpOmegaRuleOptions given{objective, activation, residual, normalize, scale, chunk_size};
  const ExpOmegaCall call(op, tokens, state, cu_seqlens, given);
  const ExpOmegaShape& shape = call.shape;
  check_saved(op, saved, shape, given, q, log_theta.has_value());
  check_final_grads(op, shape, grad_coefficients, grad_momentum, grad_weights, grad_chunk_weights);
  cpu::ExpOmegaBackward args{};
  args.options = call.options;
  args.in = call.in;
  args.saved = call.saved(saved);
  args.capacity = shape.capacity;
  args.grad_o = strided(grad_o);
  if (extra_rows) {  // without a final state there are outputs of no elements in its place
    args.grad_final_keys = strided(grad_keys);
    args.grad_final_k_tail = strided(grad_k_tail);
    args.grad_final_v_tail = strided(grad_v_tail);
  }
  view_final_grads(args, shape, grad_coefficients, grad_momentum, grad_weights, grad_chunk_weights,
                   [](const Tensor& tensor, const char*) { return strided(tensor); });
  ExpOmegaGradients result =
      new_exp_gradients(args, tokens, state, shape, grad_mask, new_kernel_result);
  if (shape.omega.sequences * shape.omega.heads == 0) return result;
  const cpu::ParallelFor parallel = torch_threads();
  const Tensor memory = scratch(
      q, cpu::exp_omega_rule_scratch(cpu::ExpOmegaPass::backward, args.options, args.in, parallel));
  args.scratch = memory.mutable_data_ptr();
  cpu::exp_omega_rule_backward(args, parallel);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CPU, library) {
  library.impl("exp_omega_rule_backward", TORCH_BOX(&exp_omega_rule_backward_cpu));
}

}  // namespace atlas::ops
