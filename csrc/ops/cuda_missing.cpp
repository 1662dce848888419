// CUDA tensors meet a clear error where the build has no CUDA kernels.
#ifndef USE_CUDA

#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <string>

namespace {

[[noreturn]] void refuse(const char* op) {
  throw std::runtime_error(
      std::string(op) +
      ": tensors: wanted CPU tensors, got CUDA tensors; this build of atlas_ext has no CUDA "
      "kernels: move the inputs to the CPU, or build atlas_ext with nvcc and a CUDA build of "
      "torch");
}

}  // namespace

#define ATLAS_REFUSE(op) library.impl(#op, [](StableIValue*, uint64_t, uint64_t) { refuse(#op); })

STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CUDA, library) {
  ATLAS_REFUSE(poly_features);
  ATLAS_REFUSE(poly_features_backward);
  ATLAS_REFUSE(newton_schulz);
  ATLAS_REFUSE(newton_schulz_backward);
  ATLAS_REFUSE(omega_rule);
  ATLAS_REFUSE(omega_rule_backward);
  ATLAS_REFUSE(omega_rule_update);
  ATLAS_REFUSE(exp_omega_rule);
  ATLAS_REFUSE(exp_omega_rule_backward);
  ATLAS_REFUSE(exp_omega_rule_update);
}

#endif
