#include "kernels/cpu/omega_update.h"

namespace atlas::kernels::cpu {

int64_t omega_update_scratch(const OmegaUpdate& args, const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(omega_update_scratch, args, parallel);
}

void omega_update(const OmegaUpdate& args, const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(omega_update, args, parallel);
}

}  // namespace atlas::kernels::cpu
