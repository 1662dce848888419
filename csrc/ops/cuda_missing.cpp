// CUDA tensors meet a clear error, whatever the build: this version has CPU kernels only.
#include <torch/csrc/stable/library.h>

#include <stdexcept>
#include <string>

namespace {

[[noreturn]] void refuse(const char* op) {
  throw std::runtime_error(
      std::string(op) +
      ": tensors: wanted CPU tensors, got CUDA tensors; this version of atlas_ext has no CUDA "
      "kernels: move the inputs to the CPU, or install a version and a build that have them");
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
}
