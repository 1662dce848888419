#include <torch/csrc/stable/library.h>

#include "ops/exp_omega_rule.h"

namespace atlas::ops {
namespace {

namespace cpu = kernels::cpu;

using Backward = std::tuple<Tensors, Tensors, Tensors, Tensors, Tensors>;

// Bits of grad_mask, in the order of the schema's inputs.
enum ExpWanted : int64_t {
  kExpWeights = 1 << 7,
  kExpKeys = 1 << 8,
  kExpCoefficients = 1 << 9,
  kExpMomentum = 1 << 10,
  kExpChunkWeights = 1 << 11,
  kExpKTail = 1 << 12,
  kExpVTail = 1 << 13
};

Tensor want(const Tensor& like, cpu::MutableArray& array) {
  const Tensor grad =
      new_result(like, {like.sizes().begin(), like.sizes().end()}, like.scalar_type());
  array = mutable_array(grad);
  return grad;
}

// Of a state's rows: zero where a sequence has not been.
Tensor want_rows(const Tensor& like, cpu::MutableArray& array) {
  Tensor grad = want(like, array);
  torch::stable::zero_(grad);
  return grad;
}

// Gradients of the final state's lists, each empty or whole, as the kernels take them.
void view_final_grads(cpu::ExpOmegaBackward& args, const char* op, const ExpOmegaShape& shape,
                      const Tensors& coefficients, const Tensors& momentum, const Tensors& weights,
                      const Tensors& chunk_weights) {
  const size_t sets = static_cast<size_t>(shape.sets), matrices = shape.matrices();
  const auto check = [&](const char* name, const Tensors& grads, size_t wanted) {
    ATLAS_CHECK(grads.empty() || grads.size() == wanted, op, std::string("grad_") + name,
                "none, or one for each of " + std::to_string(wanted) + " tensors",
                std::to_string(grads.size()));
  };
  check("coefficients", coefficients, sets);
  check("momentum", momentum, sets + (matrices > 0 ? 1 : 0));
  check("weights", weights, matrices);
  check("chunk_weights", chunk_weights, sets + matrices);
  for (size_t set = 0; set < sets; ++set) {
    if (!coefficients.empty()) args.grad_final_coefficients[set] = strided(coefficients[set]);
    if (!momentum.empty()) args.grad_final_momentum[set] = strided(momentum[set]);
    if (!chunk_weights.empty()) args.grad_final_reference[set] = strided(chunk_weights[set]);
  }
  strided_each(args.grad_final_weights, weights);
  for (size_t l = 0; l < matrices && !chunk_weights.empty(); ++l)
    args.grad_final_chunk_weights[l] = strided(chunk_weights[sets + l]);
  if (matrices > 0 && !momentum.empty())
    args.grad_final_weights_momentum = strided(momentum.back());
}

// `grads` holds the gradients of q, k, v, gamma, eta, log_alpha, log_theta, keys, k_tail and
// v_tail, with no elements where unwanted.
Backward exp_omega_rule_backward_cpu(
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
    std::optional<int64_t> extra_rows, int64_t grad_mask) {
  const char* op = "exp_omega_rule_backward";
  const ExpOmegaCall call(
      op, q, k, v, gamma, eta, log_alpha, log_theta,
      {weights, keys, coefficients, momentum, chunk_weights, k_tail, v_tail, position}, cu_seqlens,
      {objective, activation, residual, normalize, scale, chunk_size});
  const ExpOmegaShape& shape = call.shape;
  const std::vector<std::vector<int64_t>> shapes = call.saved_shapes();
  ATLAS_CHECK(saved.size() == shapes.size(), op, "saved", "what exp_omega_rule saved",
              std::to_string(saved.size()) + " tensors");
  for (size_t i = 0; i < saved.size(); ++i) {
    check_shape(op, "saved", saved[i], shapes[i], "what exp_omega_rule saved");
    ATLAS_CHECK(saved[i].is_contiguous() && saved[i].scalar_type() == compute_type(q), op, "saved",
                "contiguous " + dtype_name(compute_type(q)), describe(saved[i]));
  }
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
  view_final_grads(args, op, shape, grad_coefficients, grad_momentum, grad_weights,
                   grad_chunk_weights);

  Backward result;
  auto& [grads, out_weights, out_coefficients, out_momentum, out_chunk] = result;
  for (int i = 0; i < 10; ++i)  // one each: outputs must not alias
    grads.push_back(torch::stable::new_empty(q, {0}));
  if (grad_mask & kQ) grads[0] = want(q, args.grad_q);
  if (grad_mask & kK) grads[1] = want(k, args.grad_k);
  if (grad_mask & kV) grads[2] = want(v, args.grad_v);
  if (grad_mask & kGamma) grads[3] = want(gamma, args.grad_gamma);
  if (grad_mask & kEta) grads[4] = want(eta, args.grad_eta);
  if (log_alpha && (grad_mask & kLogAlpha)) grads[5] = want(*log_alpha, args.grad_log_alpha);
  if (log_theta && (grad_mask & kLogTheta)) grads[6] = want(*log_theta, args.grad_log_theta);
  if (keys && (grad_mask & kExpKeys)) grads[7] = want_rows(*keys, args.grad_keys);
  if (k_tail && (grad_mask & kExpKTail)) grads[8] = want(*k_tail, args.grad_k_tail);
  if (v_tail && (grad_mask & kExpVTail)) grads[9] = want(*v_tail, args.grad_v_tail);
  const size_t sets = static_cast<size_t>(shape.sets), matrices = shape.matrices();
  for (size_t l = 0; l < matrices && (grad_mask & kExpWeights); ++l)
    out_weights.push_back(want(weights[l], args.grad_weights[l]));
  for (size_t set = 0; keys && set < sets; ++set) {
    if (grad_mask & kExpCoefficients)
      out_coefficients.push_back(want_rows(coefficients[set], args.grad_coefficients[set]));
    if ((grad_mask & kExpMomentum) && !momentum.empty())
      out_momentum.push_back(want_rows(momentum[set], args.grad_momentum[set]));
    if (grad_mask & kExpChunkWeights)
      out_chunk.push_back(want_rows(chunk_weights[set], args.grad_reference[set]));
  }
  if (!out_momentum.empty() && matrices > 0)
    out_momentum.push_back(want_rows(momentum.back(), args.grad_weights_momentum));
  for (size_t l = 0; l < matrices && !out_chunk.empty(); ++l)
    out_chunk.push_back(want(chunk_weights[sets + l], args.grad_chunk_weights[l]));
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
