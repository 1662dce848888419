#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "kernels/cpu/isa.h"
#ifdef USE_CUDA
#include "kernels/cuda/device_info.h"
#endif

namespace atlas {
namespace {

// "key=value" lines for `python -m atlas_ext`.
std::string build_info() {
  std::string text = "compiler=" + std::string(__VERSION__);
  text += ATLAS_X86 ? "\ncpu_isas=baseline avx2 avx512" : "\ncpu_isas=baseline";
  text += std::string("\ncpu_isa=") + kernels::cpu::isa_name(kernels::cpu::isa());
  // The operators whose CUDA kernels, forward and backward, are in this build.
  text += "\ncuda_operators=";
#ifdef USE_CUDA
  text += "poly_features newton_schulz omega_rule omega_rule_update";
  text += " exp_omega_rule exp_omega_rule_update";
  const int runtime = kernels::cuda::compiled_runtime_version();
  text += "\ncuda_runtime=" + std::to_string(runtime / 1000) + "." +
          std::to_string(runtime % 1000 / 10);
  text += std::string("\ncuda_architectures=") + kernels::cuda::compiled_architectures();
#endif
  return text;
}

// 10 * major + minor of the code that CUDA device `device` would run; 0: none in this build.
int64_t cuda_code_architecture([[maybe_unused]] int64_t device) {
#ifdef USE_CUDA
  return kernels::cuda::code_architecture(static_cast<int>(device));
#else
  return 0;
#endif
}

#ifndef USE_CUDA
// The kernel that a call would take (plan_cuda.cpp): none here.
std::string cuda_plan(std::string, std::string, std::vector<int64_t>, bool, int64_t) { return ""; }
#endif

}  // namespace
}  // namespace atlas

STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CompositeExplicitAutograd, library) {
  library.impl("build_info", TORCH_BOX(&atlas::build_info));
  library.impl("cuda_code_architecture", TORCH_BOX(&atlas::cuda_code_architecture));
#ifndef USE_CUDA
  library.impl("cuda_plan", TORCH_BOX(&atlas::cuda_plan));
#endif
}
