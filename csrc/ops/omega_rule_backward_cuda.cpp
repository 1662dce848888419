#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "ops/omega_rule_cuda.h"

namespace atlas::ops {
namespace {

namespace cuda_kernels = kernels::cuda;

// Gradients to which several blocks contribute: each one's summand, [summands, ...] float, for the
// place among the gradients.
std::vector<std::pair<int, Tensor>> summands(const CudaContext& cuda,
                                             cuda_kernels::OmegaBackward& args,
                                             const Tensors& grads,
                                             const cuda_kernels::OmegaPlan& plan) {
  struct Target {
    int place;
    cuda_kernels::OmegaResult& result;
    int count;
    bool later;  // as many again by the next chunk, whose windows reach some of the tokens
  };
  const int slices = plan.slices;
  const bool parts = plan.parts > 1;
  const Target targets[] = {{0, args.grad_q, slices, false},
                            {1, args.grad_k, slices, parts},
                            {2, args.grad_v, 1, parts},
                            {3, args.grad_gamma, slices, false},
                            {4, args.grad_eta, slices, false},
                            {5, args.grad_log_alpha, slices, false},
                            {6, args.grad_log_theta, slices, false},
                            {7, args.grad_k_tail, slices, parts},
                            {8, args.grad_v_tail, 1, parts}};
  std::vector<std::pair<int, Tensor>> sums;
  for (const auto& [place, result, count, later] : targets) {
    const int all = later ? 2 * count : count;
    if (all <= 1 || result.data == nullptr) continue;
    std::vector<int64_t> shape{grads[place].sizes().begin(), grads[place].sizes().end()};
    shape.insert(shape.begin(), all);
    Tensor made = torch::stable::new_empty(grads[place], shape, ScalarType::Float);
    if (later) {
      Tensor behind = torch::stable::narrow(made, 0, count, count);
      torch::stable::zero_(behind);
    }
    result = {later ? cuda.update(made, "summands") : cuda.write(made, "summands"),
              cuda_kernels::Dtype::f32};
    sums.emplace_back(place, made);
  }
  return sums;
}

// What the walk over the states leaves for the other gradients, shaped like the checkpoints.
Tensors adjoints(const CudaContext& cuda, cuda_kernels::OmegaBackward& args,
                 const Tensors& checkpoints, size_t matrices) {
  Tensors made;
  for (size_t i = 0; i < checkpoints.size(); ++i) {
    made.push_back(torch::stable::empty_like(checkpoints[i]));
    float*& target = i < matrices ? args.weights_adjoints[i] : args.momentum_adjoints[i - matrices];
    target = static_cast<float*>(cuda.write(made.back(), "adjoints"));
  }
  return made;
}

OmegaGradients omega_rule_backward_cuda(
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
    int64_t chunk_size, bool output_final_state, int64_t grad_mask, bool allow_tf32) {
  const char* op = "omega_rule_backward";
  OmegaCudaCall call(op, q, k, v, gamma, eta, log_alpha, log_theta, weights, momentum,
                     chunk_weights, k_tail, v_tail, position, feature_scales, ns_table, cu_seqlens,
                     {objective, activation, residual, degree, ns_steps, ns_schedule, ns_scale,
                      ns_every, chunk_size});
  const OmegaShape& shape = call.shape;
  const CudaContext& cuda = call.cuda;
  const auto matrices = static_cast<size_t>(shape.matrices);
  check_checkpoints(op, checkpoints, shape, call.checkpoints, log_theta.has_value(),
                    ScalarType::Float);
  check_state_grads(op, grad_weights, grad_momentum, grad_chunk_weights, shape);
  cuda_kernels::OmegaBackward args{};
  args.options = call.options;
  args.in = call.in;
  const auto saved = [&](size_t i) {
    return static_cast<const float*>(cuda.read(checkpoints[i], "checkpoints"));
  };
  for (size_t l = 0; l < matrices; ++l) {
    args.weights_checkpoints[l] = saved(l);
    if (log_theta) args.momentum_checkpoints[l] = saved(matrices + l);
  }
  args.grad_o = omega_tensor(cuda, op, grad_o, "grad_o");
  omega_tensors(cuda, op, args.grad_final_weights, grad_weights, "grad_weights");
  omega_tensors(cuda, op, args.grad_final_momentum, grad_momentum, "grad_momentum");
  omega_tensors(cuda, op, args.grad_final_chunk_weights, grad_chunk_weights, "grad_chunk_weights");
  if (output_final_state) {  // else there are outputs of no elements in its place
    args.grad_final_k_tail = omega_tensor(cuda, op, grad_k_tail, "grad_k_tail");
    args.grad_final_v_tail = omega_tensor(cuda, op, grad_v_tail, "grad_v_tail");
  }

  const OmegaGiven given{q,         k,       v,        gamma,         eta,    log_alpha,
                         log_theta, weights, momentum, chunk_weights, k_tail, v_tail};
  OmegaGradients result = new_gradients(args, given, grad_mask, NewKernelResult{cuda, op});
  Tensors& grads = std::get<0>(result);
  cuda_kernels::OmegaPlan plan{};
  if (call.items() > 0)
    plan = cuda_kernels::omega_rule_plan(cuda_kernels::OmegaPass::backward, args.options,
                                         call.dtype, allow_tf32, call.items(), call.chunks(),
                                         call.packed(), shape.batch * shape.tokens * shape.heads);
  const bool wants_scales = feature_scales && (grad_mask & kScales);
  const Tensor scales = torch::stable::new_zeros(
      q, {wants_scales ? call.items() * plan.slices * plan.parts : 0, degree + 1},
      ScalarType::Float);
  if (wants_scales) args.grad_scales = static_cast<float*>(cuda.write(scales, "grad_scales"));
  std::vector<std::pair<int, Tensor>> sums = summands(cuda, args, grads, plan);
  if (call.items() > 0) {
    const Tensor memory = omega_scratch(q, plan);
    Tensors left;
    if (plan.parts > 1) left = adjoints(cuda, args, checkpoints, matrices);
    args.space.device = static_cast<float*>(cuda.scratch(memory, "scratch"));
    check_launch(cuda_kernels::omega_rule_backward(args, plan, cuda.stream()), op);
  }
  for (; !sums.empty(); sums.pop_back()) {  // each gives its memory back
    const auto& [place, made] = sums.back();
    grads[place] = summed(made, grads[place].scalar_type());
  }
  if (wants_scales) grads[9] = summed(scales, feature_scales->scalar_type());
  return result;
}

}  // namespace

ATLAS_CUDA_LIBRARY_IMPL(library) {
  library.impl("omega_rule_backward", TORCH_BOX(&omega_rule_backward_cuda));
}

}  // namespace atlas::ops
