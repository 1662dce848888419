#include "kernels/cpu/omega_update.h"

#if ATLAS_X86
#define ATLAS_ISA avx512
#include "kernels/cpu/isa_begin.h"
// isa_begin.h comes first: it sets the target of all that follows.
#include "kernels/cpu/omega_update.inc.h"
#endif
