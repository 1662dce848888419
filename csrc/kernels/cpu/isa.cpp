#include "kernels/cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace atlas::kernels::cpu {
namespace {

Isa best_isa() {
#if ATLAS_X86
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512) return Isa::avx512;
  if (avx2) return Isa::avx2;
#endif
  return Isa::baseline;
}

Isa choose_isa() {
  const char* wanted = std::getenv("ATLAS_EXT_CPU_ISA");
  const Isa best = best_isa();
  if (wanted == nullptr || *wanted == '\0') return best;
  for (Isa candidate : {Isa::baseline, Isa::avx2, Isa::avx512}) {
    if (isa_name(candidate) != std::string(wanted)) continue;
    if (candidate <= best) return candidate;
    throw std::runtime_error(
        std::string("ATLAS_EXT_CPU_ISA: wanted an instruction set that this machine has (at "
                    "best ") +
        isa_name(best) + "), got " + wanted);
  }
  throw std::runtime_error(std::string("ATLAS_EXT_CPU_ISA: wanted baseline, avx2 or avx512, got ") +
                           wanted);
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

const char* isa_name(Isa isa) {
  return isa == Isa::avx512 ? "avx512" : isa == Isa::avx2 ? "avx2" : "baseline";
}

}  // namespace atlas::kernels::cpu
