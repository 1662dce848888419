#include "kernels/cpu/exp_omega_rule.h"

#define ATLAS_ISA baseline
#include "kernels/cpu/isa_begin.h"
// isa_begin.h comes first: it sets the target of all that follows.
#include "kernels/cpu/exp_omega_rule.inc.h"
