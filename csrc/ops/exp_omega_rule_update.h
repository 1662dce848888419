#pragma once
// Arguments of exp_omega_rule_update, checked: what every device shares.
#include "ops/exp_omega_rule.h"
#include "ops/omega_rule_update.h"

namespace atlas::ops {

// All that the schema gives, but for the values of positions.
inline ExpOmegaShape check_exp_omega_rule_update(const char* op, const ExpOmegaTokens& tokens,
                                                 const ExpOmegaStateArguments& state,
                                                 const ExpOmegaRuleOptions& given) {
  const auto& [q, k, v, gamma, eta, log_alpha, log_theta] = tokens;
  check_tokens(op, "N, H", q, k, v, gamma, eta, log_alpha, log_theta);
  check_exp_options(op, given, q, v);
  const OmegaShape letters{q.size(0), 1,         q.size(1),     q.size(2),
                           v.size(2), q.size(2), gamma.size(2), q.size(0)};
  const ExpOmegaShape shape = check_exp_state(op, "state.", letters, state, q);
  ATLAS_CHECK(state.momentum.empty() == !log_theta, op, "log_theta",
              state.momentum.empty() ? "None: the state has no momentum"
                                     : "a tensor: the state has a momentum",
              log_theta ? describe(*log_theta) : "None");
  check_dense_rows(op, "state.keys", *state.keys);
  for (const auto& [name, tensors] :
       {std::pair<const char*, const Tensors&>{"state.coefficients", state.coefficients},
        {"state.momentum", state.momentum},
        {"state.weights", state.weights},
        {"state.chunk_weights", state.chunk_weights}})
    for (const Tensor& tensor : tensors) check_dense_rows(op, name, tensor);
  check_dense_rows(op, "state.k_tail", *state.k_tail);
  check_dense_rows(op, "state.v_tail", *state.v_tail);
  check_places(op, "state.position", *state.position);
  return shape;
}

}  // namespace atlas::ops
