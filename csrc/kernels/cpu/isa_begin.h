// Included once per translation unit, after all std headers and after ATLAS_ISA is defined: from
// here on code is compiled for that instruction set. No std template may be instantiated below this
// line: the linker keeps one copy for all.
#include "kernels/cpu/isa.h"

#define ATLAS_ISA_IS_baseline 0
#define ATLAS_ISA_IS_avx2 1
#define ATLAS_ISA_IS_avx512 2
#define ATLAS_ISA_CONCAT(a, b) a##b
#define ATLAS_ISA_LEVEL_OF(isa) ATLAS_ISA_CONCAT(ATLAS_ISA_IS_, isa)
#define ATLAS_ISA_LEVEL ATLAS_ISA_LEVEL_OF(ATLAS_ISA)

#if ATLAS_ISA_LEVEL == 2
#pragma GCC target( \
    "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,bmi,bmi2,prefer-vector-width=512")
#define ATLAS_VECTOR_BYTES 64
#define ATLAS_VECTOR_REGISTERS 32
#elif ATLAS_ISA_LEVEL == 1
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#define ATLAS_VECTOR_BYTES 32
#define ATLAS_VECTOR_REGISTERS 16
#else
#define ATLAS_VECTOR_BYTES 16
#if ATLAS_X86
#define ATLAS_VECTOR_REGISTERS 16
#else
#define ATLAS_VECTOR_REGISTERS 32
#endif
#endif
