#pragma once
// From the tensors of the exponential Omega rule's operators to what the CPU kernels take.
#include "kernels/cpu/exp_omega_rule.h"
#include "ops/exp_omega_rule_outputs.h"
#include "ops/omega_rule_cpu.h"

namespace atlas::ops {

kernels::cpu::ExpOmegaOptions exp_options(const ExpOmegaShape& shape,
                                          const ExpOmegaRuleOptions& given, const Tensor& q);

// Views of the tokens, and of the state, whose rows go on beyond the letters of the tokens.
void exp_state_views(kernels::cpu::ExpOmegaInputs& in, const ExpOmegaShape& shape,
                     const ExpOmegaStateArguments& state);

// All that the schema gives forward and backward alike.
struct ExpOmegaCall {
  ExpOmegaShape shape;
  kernels::cpu::ExpOmegaOptions options;
  kernels::cpu::ExpOmegaInputs in;

  ExpOmegaCall(const char* op, const ExpOmegaTokens& tokens, const ExpOmegaStateArguments& state,
               const MaybeTensor& cu_seqlens, const ExpOmegaRuleOptions& given);
  ExpOmegaCall(const ExpOmegaCall&) = delete;
  ExpOmegaCall& operator=(const ExpOmegaCall&) = delete;

  kernels::cpu::ExpOmegaSaved saved(const Tensors& tensors) const;

 private:
  std::vector<kernels::cpu::OmegaSequence> sequences_;
};

}  // namespace atlas::ops
