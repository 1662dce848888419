#pragma once
// Arguments of omega_rule_update, checked: what every device shares.
#include "ops/omega_rule.h"

namespace atlas::ops {

// A tensor that is written in place: an element must not be several at once, as expand makes them.
inline void check_places(const char* op, const std::string& argument, const Tensor& tensor) {
  for (int64_t i = 0; i < tensor.dim(); ++i)
    ATLAS_CHECK(tensor.size(i) <= 1 || tensor.stride(i) != 0, op, argument,
                "an element in memory of its own for every index",
                "stride 0 along dimension " + std::to_string(i) + " of " + describe(tensor));
}

// The same, row by row.
inline void check_dense_rows(const char* op, const std::string& argument, const Tensor& tensor) {
  check_places(op, argument, tensor);
  const int64_t last = tensor.dim() - 1;
  ATLAS_CHECK(tensor.numel() == 0 || tensor.size(last) == 1 || tensor.stride(last) == 1, op,
              argument, "stride 1 along the last dimension",
              "stride " + std::to_string(tensor.stride(last)));
}

// The rows' slots, but for their values; absent: in order, M = N.
inline void check_state_indices(const char* op, const MaybeTensor& indices, const OmegaShape& shape,
                                const Tensor& q) {
  if (!indices) {
    ATLAS_CHECK(shape.tokens == shape.sequences, op, "q",
                "[M, H, K] with M = N = " + std::to_string(shape.sequences), describe(q));
    return;
  }
  check_device(op, "state_indices", *indices, q);
  ATLAS_CHECK(
      indices->scalar_type() == ScalarType::Long || indices->scalar_type() == ScalarType::Int, op,
      "state_indices", "int32 or int64 [M]", describe(*indices));
  check_shape(op, "state_indices", *indices, {shape.tokens}, "[M]");
}

// All that the schema gives. The result's tokens are the M rows.
inline OmegaShape check_omega_rule_update(
    const char* op, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gamma,
    const Tensor& eta, const MaybeTensor& log_alpha, const MaybeTensor& log_theta,
    const Tensors& weights, const Tensors& momentum, const Tensors& chunk_weights,
    const Tensor& k_tail, const Tensor& v_tail, const Tensor& position,
    const MaybeTensor& state_indices, const MaybeTensor& feature_scales,
    const MaybeTensor& ns_table, const OmegaRuleOptions& given) {
  check_tokens(op, "M, H", q, k, v, gamma, eta, log_alpha, log_theta);
  check_options(op, given, ns_table, feature_scales, q, v);
  ATLAS_CHECK(position.dim() == 1, op, "state.position", "int64 [N]", describe(position));
  OmegaShape shape{1,
                   q.size(0),
                   q.size(1),
                   q.size(2),
                   v.size(2),
                   features_of(q.size(2), given.degree),
                   gamma.size(2),
                   position.size(0)};
  set_memory(shape, op, "state.weights", weights);
  check_memory(op, "state.weights", weights, q, shape, true);
  check_state(op, "state.", momentum, chunk_weights, k_tail, v_tail, position, q, shape);
  ATLAS_CHECK(
      momentum.empty() == !log_theta, op, "log_theta",
      momentum.empty() ? "None: the state has no momentum" : "a tensor: the state has a momentum",
      log_theta ? describe(*log_theta) : "None");
  check_state_indices(op, state_indices, shape, q);
  for (const auto& [name, tensors] :
       {std::pair<const char*, const Tensors&>{"state.weights", weights},
        {"state.momentum", momentum},
        {"state.chunk_weights", chunk_weights}})
    for (const Tensor& tensor : tensors) check_dense_rows(op, name, tensor);
  check_dense_rows(op, "state.k_tail", k_tail);
  check_dense_rows(op, "state.v_tail", v_tail);
  check_places(op, "state.position", position);
  return shape;
}

}  // namespace atlas::ops
