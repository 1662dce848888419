#include "ops/omega_rule_cpu.h"

namespace atlas::ops {
namespace {

kernels::cpu::Activation activation_of(const std::string& name) {
  using kernels::cpu::Activation;
  return name == "gelu"   ? Activation::gelu
         : name == "silu" ? Activation::silu
                          : Activation::identity;
}

}  // namespace

OmegaCpuOptions::OmegaCpuOptions(const OmegaShape& shape, const OmegaRuleOptions& given,
                                 const MaybeTensor& feature_scales, const MaybeTensor& ns_table,
                                 ScalarType sums) {
  options.heads = shape.heads;
  options.key_dim = shape.key;
  options.value_dim = shape.value;
  options.window = shape.window;
  options.chunk_size = given.chunk_size;
  options.matrices = static_cast<int>(shape.matrices);
  options.hidden = shape.hidden;
  options.activation = activation_of(given.activation);
  options.degree = static_cast<int>(given.degree);
  options.l2 = given.objective == "l2";
  options.residual = given.residual;
  if (given.degree > 0) {
    options.scales = read_scales(feature_scales, given.degree);
    roots_ = poly_roots(shape.key, given.degree);
  }
  options.roots = roots_.data();
  schedule_ = schedule_rows(ns_table, given.ns_schedule, given.ns_steps);
  options.ns = {schedule_.data(), static_cast<int>(given.ns_steps), 1.0, 1e-7};
  for (int64_t l = 0; l < shape.matrices; ++l) {
    const std::vector<int64_t> sizes = matrix_shape(shape, l);
    options.ns_scales[l] = ns_factor(given.ns_scale, sizes[0], sizes[1]);
  }
  options.ns_every = given.ns_every;
  options.is_double = sums == ScalarType::Double;
}

OmegaCall::OmegaCall(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                     const Tensor& gamma, const Tensor& eta, const MaybeTensor& log_alpha,
                     const MaybeTensor& log_theta, const Tensors& weights, const Tensors& momentum,
                     const Tensors& chunk_weights, const MaybeTensor& k_tail,
                     const MaybeTensor& v_tail, const MaybeTensor& position,
                     const MaybeTensor& feature_scales, const MaybeTensor& ns_table,
                     const MaybeTensor& cu_seqlens, const OmegaRuleOptions& given) {
  shape = check_omega_rule(op, q, k, v, gamma, eta, log_alpha, log_theta, weights, momentum,
                           chunk_weights, k_tail, v_tail, position, feature_scales, ns_table,
                           cu_seqlens, given);
  held = std::make_unique<OmegaCpuOptions>(shape, given, feature_scales, ns_table, compute_type(q));
  checkpoints =
      checkpoints_of(shape, given.chunk_size, position.has_value(), cu_seqlens.has_value());
  sequences_ = sequences_of(op, shape, given.chunk_size, position, cu_seqlens);
  in.q = strided(q);
  in.k = strided(k);
  in.v = strided(v);
  in.gamma = strided(gamma);
  in.eta = strided(eta);
  in.log_alpha = strided(log_alpha);
  in.log_theta = strided(log_theta);
  strided_each(in.weights, weights);
  strided_each(in.momentum, momentum);
  strided_each(in.chunk_weights, chunk_weights);
  in.k_tail = strided(k_tail);
  in.v_tail = strided(v_tail);
  in.sequences = sequences_.data();
  in.num_sequences = shape.sequences;
  in.tokens = shape.tokens;
}

std::vector<kernels::cpu::OmegaSequence> sequences_of(const char* op, const OmegaShape& shape,
                                                      int64_t chunk, const MaybeTensor& position,
                                                      const MaybeTensor& cu_seqlens) {
  std::vector<kernels::cpu::OmegaSequence> sequences;
  std::vector<int64_t> bounds;
  if (cu_seqlens) {
    const Tensor wide = torch::stable::contiguous(torch::stable::to(*cu_seqlens, ScalarType::Long));
    bounds.assign(wide.const_data_ptr<int64_t>(), wide.const_data_ptr<int64_t>() + wide.numel());
    bool valid = bounds.front() == 0 && bounds.back() == shape.tokens;
    for (size_t n = 1; n < bounds.size(); ++n) valid = valid && bounds[n - 1] <= bounds[n];
    ATLAS_CHECK(valid, op, "cu_seqlens",
                "0 to T = " + std::to_string(shape.tokens) + ", never decreasing",
                shape_text(bounds));
  }
  const int64_t extra = position ? 1 : 0;
  const int64_t each = shape.tokens / chunk + (shape.tokens % chunk != 0) + extra;
  MaybeTensor positions;
  if (position) positions = torch::stable::contiguous(*position);
  for (int64_t n = 0; n < shape.sequences; ++n) {
    const int64_t start = positions ? positions->const_data_ptr<int64_t>()[n] : 0;
    ATLAS_CHECK(start >= 0, op, "initial_state.position", "tokens seen, >= 0",
                std::to_string(start));
    if (cu_seqlens)
      sequences.push_back(
          {0, bounds[n], bounds[n + 1], start, bounds[n] / chunk + n * (1 + extra)});
    else
      sequences.push_back({n, 0, shape.tokens, start, n * each});
  }
  return sequences;
}

}  // namespace atlas::ops
