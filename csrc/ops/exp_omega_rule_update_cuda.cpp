#include <torch/csrc/stable/library.h>

#include "kernels/cuda/exp_omega_update.h"
#include "ops/exp_omega_rule_cuda.h"
#include "ops/exp_omega_rule_update.h"

namespace atlas::ops {
namespace {

namespace cuda_kernels = kernels::cuda;

constexpr const char* kOp = "exp_omega_rule_update";

// Positions are read by the kernels alone, so nothing waits for the device and the call can be
// captured in a graph. A sequence whose position is negative, or whose state has no room for the
// token, gets NaN as its output and leaves the state untouched.
Tensor exp_omega_rule_update_cuda(
    const Tensor& q, const Tensor& k, const Tensor& v,           // [N, H, K], [N, H, K], [N, H, V]
    const Tensor& gamma, const Tensor& eta,                      // [N, H, W], [N, H]
    const MaybeTensor& log_alpha, const MaybeTensor& log_theta,  // [N, H]
    const Tensors& weights,                                      // each [N, H, out, in]
    const Tensor& keys, const Tensors& coefficients,             // each [N, capacity, H, .]
    const Tensors& momentum, const Tensors& chunk_weights, const Tensor& k_tail,
    const Tensor& v_tail,    // [N, W-1, H, K], [N, W-1, H, V]
    const Tensor& position,  // [N]
    const std::string& objective, const std::string& activation, bool residual,
    const std::string& normalize, double scale, int64_t chunk_size) {
  const ExpOmegaTokens tokens{q, k, v, gamma, eta, log_alpha, log_theta};
  const ExpOmegaRuleOptions given{objective, activation, residual, normalize, scale, chunk_size};
  const MaybeTensor all_keys = keys, k_rows = k_tail, v_rows = v_tail, places = position;
  const ExpOmegaStateArguments state{weights,       all_keys, coefficients, momentum,
                                     chunk_weights, k_rows,   v_rows,       places};
  const ExpOmegaShape shape = check_exp_omega_rule_update(kOp, tokens, state, given);
  const OmegaShape& letters = shape.omega;
  const cuda_kernels::Dtype dtype = cuda_dtype(kOp, "q", q);
  const CudaContext cuda(q);
  const cuda_kernels::ExpOmegaOptions options = exp_omega_options(
      cuda, kOp, shape, given, log_theta.has_value(), shape.capacity, "state.keys");
  Tensors held;
  cuda_kernels::ExpOmegaInputs in{};
  exp_omega_state(cuda, kOp, "state.", in, shape, state, held, true);
  cuda_kernels::ExpOmegaUpdate args{};
  cuda_kernels::OmegaUpdate& omega = args.omega;
  omega.options = options.omega;
  omega.in = in.omega;
  omega_token(cuda, kOp, omega.in, q, k, v, gamma, eta, log_alpha, log_theta);
  omega.in.sequences = letters.sequences;
  omega.in.tokens = 1;
  omega.position = static_cast<int64_t*>(cuda.update(position, "position"));
  omega.position_stride = position.stride(0);
  omega.capacity = shape.capacity;
  omega.rows = letters.sequences;
  args.normalize = options.normalize;
  args.scale = options.scale;
  args.keys = in.keys;
  for (int64_t set = 0; set < shape.sets; ++set) {
    args.coefficients[set] = in.coefficients[set];
    args.momentum[set] = in.momentum[set];
    args.reference[set] = in.reference[set];
  }
  const Tensor o = torch::stable::new_empty(v, {letters.sequences, letters.heads, letters.value});
  if (letters.sequences == 0) return o;
  omega.o = {cuda.write(o, "o"), dtype};
  const cuda_kernels::ExpOmegaUpdatePlan plan = cuda_kernels::exp_omega_update_plan(
      options, shape.capacity, letters.sequences * letters.heads);
  const Tensor memory =
      torch::stable::new_empty(q, {plan.partial_floats + plan.scratch_floats}, ScalarType::Float);
  check_launch(cuda_kernels::exp_omega_rule_update(
                   args, plan, static_cast<float*>(cuda.scratch(memory, "scratch")), cuda.stream()),
               kOp);
  return o;
}

}  // namespace

ATLAS_CUDA_LIBRARY_IMPL(library) {
  library.impl("exp_omega_rule_update", TORCH_BOX(&exp_omega_rule_update_cuda));
}

}  // namespace atlas::ops
