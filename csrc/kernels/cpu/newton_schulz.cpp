#include "kernels/cpu/newton_schulz.h"

namespace atlas::kernels::cpu {

int64_t newton_schulz_batch_scratch(int64_t m, int64_t n, int steps, bool backward, bool is_double,
                                    int64_t tasks) {
  ATLAS_CALL_PER_ISA(newton_schulz_batch_scratch, m, n, steps, backward, is_double, tasks);
}

void newton_schulz_batch(const NewtonSchulzBatch& args, const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(newton_schulz_batch, args, parallel);
}

void newton_schulz_batch_backward(const NewtonSchulzBatch& args, const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(newton_schulz_batch_backward, args, parallel);
}

}  // namespace atlas::kernels::cpu
