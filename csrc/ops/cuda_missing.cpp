// CUDA tensors meet a clear error where the build has no kernel for them.
#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <string>

namespace {

#ifdef USE_CUDA
constexpr const char* kAdvice =
    "this version of atlas_ext has no CUDA kernel for this operator: move the inputs to the CPU";
#else
constexpr const char* kAdvice =
    "this build of atlas_ext has no CUDA kernels: move the inputs to the CPU, or build atlas_ext "
    "with nvcc and a CUDA build of torch";
#endif

[[noreturn, maybe_unused]] void refuse(const char* op) {
  throw std::runtime_error(std::string(op) + ": tensors: wanted CPU tensors, got CUDA tensors; " +
                           kAdvice);
}

}  // namespace

#define ATLAS_REFUSE(op) library.impl(#op, [](StableIValue*, uint64_t, uint64_t) { refuse(#op); })

STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CUDA, library) {
#ifndef USE_CUDA
  ATLAS_REFUSE(poly_features);
  ATLAS_REFUSE(poly_features_backward);
  ATLAS_REFUSE(newton_schulz);
  ATLAS_REFUSE(newton_schulz_backward);
  ATLAS_REFUSE(omega_rule);
  ATLAS_REFUSE(omega_rule_backward);
  ATLAS_REFUSE(omega_rule_update);
  ATLAS_REFUSE(exp_omega_rule);
#endif
  ATLAS_REFUSE(exp_omega_rule_backward);
  ATLAS_REFUSE(exp_omega_rule_update);
}
