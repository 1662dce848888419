#include <torch/csrc/stable/library.h>

#include "ops/omega_rule_cpu.h"

namespace atlas::ops {
namespace {

namespace cpu = kernels::cpu;

OmegaGradients omega_rule_backward_cpu(
    const MaybeTensor& grad_o,  // [B, T, H, V]
    const Tensors& grad_weights, const Tensors& grad_momentum,
    const Tensors& grad_chunk_weights,  // each [N, H, out, in]
    const MaybeTensor& grad_k_tail,
    const MaybeTensor& grad_v_tail,  // [N, W-1, H, K], [N, W-1, H, V]
    const Tensors& checkpoints,      // each [checkpoints, H, in, out]
    const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gamma, const Tensor& eta,
    const MaybeTensor& log_alpha, const MaybeTensor& log_theta, const Tensors& weights,
    const Tensors& momentum, const Tensors& chunk_weights, const MaybeTensor& k_tail,
    const MaybeTensor& v_tail, const MaybeTensor& position, const MaybeTensor& feature_scales,
    const MaybeTensor& ns_table, const MaybeTensor& cu_seqlens, const std::string& objective,
    const std::string& activation, bool residual, int64_t degree, int64_t ns_steps,
    const std::string& ns_schedule, const std::string& ns_scale, int64_t ns_every,
    int64_t chunk_size, bool output_final_state, int64_t grad_mask,
    [[maybe_unused]] bool allow_tf32) {
  const char* op = "omega_rule_backward";
  const OmegaCall call(op, q, k, v, gamma, eta, log_alpha, log_theta, weights, momentum,
                       chunk_weights, k_tail, v_tail, position, feature_scales, ns_table,
                       cu_seqlens,
                       {objective, activation, residual, degree, ns_steps, ns_schedule, ns_scale,
                        ns_every, chunk_size});
  const OmegaShape& shape = call.shape;
  const size_t matrices = static_cast<size_t>(shape.matrices);
  check_checkpoints(op, checkpoints, shape, call.checkpoints, log_theta.has_value(),
                    compute_type(q));
  check_state_grads(op, grad_weights, grad_momentum, grad_chunk_weights, shape);
  cpu::OmegaBackward args{};
  args.options = call.options();
  args.in = call.in;
  for (size_t i = 0; i < checkpoints.size(); ++i)
    (i < matrices ? args.weights_checkpoints : args.momentum_checkpoints)[i % matrices] =
        checkpoints[i].const_data_ptr();
  args.grad_o = strided(grad_o);
  strided_each(args.grad_final_weights, grad_weights);
  strided_each(args.grad_final_momentum, grad_momentum);
  strided_each(args.grad_final_chunk_weights, grad_chunk_weights);
  if (output_final_state) {  // else there are outputs of no elements in its place
    args.grad_final_k_tail = strided(grad_k_tail);
    args.grad_final_v_tail = strided(grad_v_tail);
  }

  const OmegaGiven given{q,         k,       v,        gamma,         eta,    log_alpha,
                         log_theta, weights, momentum, chunk_weights, k_tail, v_tail};
  OmegaGradients result = new_gradients(args, given, grad_mask, new_kernel_result);
  const bool wants_scales = feature_scales && (grad_mask & kScales);
  Tensor scales;
  if (wants_scales) {
    scales = torch::stable::new_zeros(q, {shape.sequences * shape.heads, degree + 1},
                                      ScalarType::Double);
    args.grad_scales = scales.mutable_data_ptr<double>();
  }
  if (shape.sequences * shape.heads > 0) {
    const cpu::ParallelFor parallel = torch_threads();
    const Tensor memory =
        scratch(q, cpu::omega_rule_scratch(args.options, args.in, true, parallel));
    args.scratch = memory.mutable_data_ptr();
    cpu::omega_rule_backward(args, parallel);
  }
  if (wants_scales) {
    std::get<0>(result)[9] = summed(scales, feature_scales->scalar_type());
  }
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CPU, library) {
  library.impl("omega_rule_backward", TORCH_BOX(&omega_rule_backward_cpu));
}

}  // namespace atlas::ops
