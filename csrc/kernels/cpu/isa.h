#pragma once
// Instruction sets. Every kernel family has one body (x.inc.h) that is compiled once per
// instruction set in a thin translation unit (x_avx512.cpp: std headers, `#define ATLAS_ISA
// avx512`, isa_begin.h, body); `select` picks one.

#if defined(__x86_64__) && defined(__GNUC__)
#define ATLAS_X86 1
#else
#define ATLAS_X86 0
#endif

namespace atlas::kernels::cpu {

enum class Isa { baseline, avx2, avx512 };

// The best instruction set of this machine, or the one that ATLAS_EXT_CPU_ISA names; read once.
// Throws std::runtime_error when the variable names an unknown set or one that the machine lacks.
Isa isa();
const char* isa_name(Isa isa);

}  // namespace atlas::kernels::cpu

// Declares `signature` in the namespace of each instruction set.
#define ATLAS_DECLARE_PER_ISA(...) \
  namespace baseline {             \
  __VA_ARGS__;                     \
  }                                \
  namespace avx2 {                 \
  __VA_ARGS__;                     \
  }                                \
  namespace avx512 {               \
  __VA_ARGS__;                     \
  }

// Calls function(...) of the namespace that isa() selects.
#if ATLAS_X86
#define ATLAS_CALL_PER_ISA(function, ...)     \
  switch (::atlas::kernels::cpu::isa()) {     \
    case ::atlas::kernels::cpu::Isa::avx512:  \
      return avx512::function(__VA_ARGS__);   \
    case ::atlas::kernels::cpu::Isa::avx2:    \
      return avx2::function(__VA_ARGS__);     \
    default:                                  \
      return baseline::function(__VA_ARGS__); \
  }
#else
#define ATLAS_CALL_PER_ISA(function, ...) return baseline::function(__VA_ARGS__)
#endif
