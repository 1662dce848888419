#include "kernels/cpu/exp_omega_rule.h"

#if ATLAS_X86
#define ATLAS_ISA avx2
#include "kernels/cpu/isa_begin.h"
// isa_begin.h comes first: it sets the target of all that follows.
#include "kernels/cpu/exp_omega_rule.inc.h"
#endif
