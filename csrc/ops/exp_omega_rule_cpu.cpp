#include "ops/exp_omega_rule_cpu.h"

namespace atlas::ops {

namespace cpu = kernels::cpu;

cpu::ExpOmegaOptions exp_options(const ExpOmegaShape& shape, const ExpOmegaRuleOptions& given,
                                 const Tensor& q) {
  const OmegaCpuOptions held(shape.omega, omega_options_of(given), std::nullopt, std::nullopt,
                             compute_type(q));
  const cpu::Normalize normalize = given.normalize == "softmax" ? cpu::Normalize::softmax
                                   : given.normalize == "rms"   ? cpu::Normalize::rms
                                                                : cpu::Normalize::none;
  cpu::ExpOmegaOptions options{held.options, normalize, given.scale};
  options.omega.roots = nullptr;  // of the polynomial map and of Newton-Schulz: there is neither
  options.omega.ns.table = nullptr;
  return options;
}

void exp_state_views(cpu::ExpOmegaInputs& in, const ExpOmegaShape& shape,
                     const ExpOmegaStateArguments& state) {
  const size_t sets = static_cast<size_t>(shape.sets), matrices = shape.matrices();
  strided_each(in.omega.weights, state.weights);
  in.keys = strided(state.keys);
  in.omega.k_tail = strided(state.k_tail);
  in.omega.v_tail = strided(state.v_tail);
  if (!state.keys) return;
  for (size_t set = 0; set < sets; ++set) {
    in.coefficients[set] = strided(state.coefficients[set]);
    in.reference[set] = strided(state.chunk_weights[set]);
    if (!state.momentum.empty()) in.momentum[set] = strided(state.momentum[set]);
  }
  for (size_t l = 0; l < matrices; ++l)
    in.omega.chunk_weights[l] = strided(state.chunk_weights[sets + l]);
  if (matrices > 0 && !state.momentum.empty())
    in.omega.momentum[matrices - 1] = strided(state.momentum.back());
}

ExpOmegaCall::ExpOmegaCall(const char* op, const ExpOmegaTokens& tokens,
                           const ExpOmegaStateArguments& state, const MaybeTensor& cu_seqlens,
                           const ExpOmegaRuleOptions& given)
    : shape(check_exp_omega_rule(op, tokens, state, cu_seqlens, given)),
      options(exp_options(shape, given, tokens.q)) {
  sequences_ = sequences_of(op, shape.omega, given.chunk_size, state.position, cu_seqlens);
  for (const cpu::OmegaSequence& sequence : sequences_)
    ATLAS_CHECK(!state.keys || sequence.position <= shape.capacity, op, "initial_state.position",
                "tokens seen, at most the capacity " + std::to_string(shape.capacity),
                std::to_string(sequence.position));
  in.omega.q = strided(tokens.q);
  in.omega.k = strided(tokens.k);
  in.omega.v = strided(tokens.v);
  in.omega.gamma = strided(tokens.gamma);
  in.omega.eta = strided(tokens.eta);
  in.omega.log_alpha = strided(tokens.log_alpha);
  in.omega.log_theta = strided(tokens.log_theta);
  exp_state_views(in, shape, state);
  in.omega.sequences = sequences_.data();
  in.omega.num_sequences = shape.omega.sequences;
  in.omega.tokens = shape.omega.tokens;
}

cpu::ExpOmegaSaved ExpOmegaCall::saved(const Tensors& tensors) const {
  void* data[6] = {};
  for (size_t i = 0; i < tensors.size(); ++i)
    if (tensors[i].dim() > 1) data[i] = tensors[i].mutable_data_ptr();
  return {shape.window_rows, data[0], data[1], data[2], data[3], data[4], data[5]};
}

}  // namespace atlas::ops
