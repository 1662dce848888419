#include "kernels/cpu/omega_rule.h"

namespace atlas::kernels::cpu {

int64_t omega_rule_scratch(const OmegaOptions& options, const OmegaInputs& in, bool backward,
                           const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(omega_rule_scratch, options, in, backward, parallel);
}

void omega_rule(const OmegaForward& args, const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(omega_rule, args, parallel);
}

void omega_rule_backward(const OmegaBackward& args, const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(omega_rule_backward, args, parallel);
}

}  // namespace atlas::kernels::cpu
