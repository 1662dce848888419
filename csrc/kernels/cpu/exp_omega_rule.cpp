#include "kernels/cpu/exp_omega_rule.h"

namespace atlas::kernels::cpu {

int64_t exp_omega_rule_scratch(ExpOmegaPass pass, const ExpOmegaOptions& options,
                               const ExpOmegaInputs& in, const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(exp_omega_rule_scratch, pass, options, in, parallel);
}

void exp_omega_rule(const ExpOmegaForward& args, const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(exp_omega_rule, args, parallel);
}

void exp_omega_rule_backward(const ExpOmegaBackward& args, const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(exp_omega_rule_backward, args, parallel);
}

void exp_omega_update(const ExpOmegaUpdate& args, const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(exp_omega_update, args, parallel);
}

}  // namespace atlas::kernels::cpu
