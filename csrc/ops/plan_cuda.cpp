// Which kernel a call would take on a device that need not be there, in words.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "kernels/cuda/capabilities.h"
#include "kernels/cuda/newton_schulz.h"
#include "kernels/cuda/poly_features.h"
#include "ops/check.h"
#include "ops/cuda_context.h"

namespace atlas::ops {
namespace {

namespace cuda_kernels = kernels::cuda;

std::string kibibytes(int64_t bytes) {
  const int64_t tenths = (bytes * 10 + 512) / 1024;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " KiB";
}

std::string resources(int threads, int64_t shared_bytes) {
  return std::to_string(threads) + " threads, " + kibibytes(shared_bytes);
}

std::string describe(const cuda_kernels::NewtonSchulzPlan& plan) {
  if (!plan.fused) return "matrix products";
  return "fused " + std::to_string(plan.size) + ": " + plan.arithmetic + ", " +
         std::to_string(plan.matrices) + " a block, " + resources(plan.threads, plan.shared_bytes);
}

std::string describe(const cuda_kernels::PolyFeaturesPlan& plan) {
  return std::to_string(plan.lanes) + " lanes a row, sums in " +
         (plan.sums_in_shared ? "shared" : "device") + " memory, " +
         resources(plan.threads, plan.shared_bytes);
}

// sizes: m, n of newton_schulz; K, degree of poly_features.
std::string cuda_plan(std::string op, std::string dtype, std::vector<int64_t> sizes,
                      bool allow_tf32, int64_t capability) {
  const char* name = "cuda_plan";
  constexpr const char* kDtypes[] = {"float32", "bfloat16", "float16"};  // in the order of Dtype
  int type = 0;
  while (type < 3 && dtype != kDtypes[type]) ++type;
  ATLAS_CHECK(type < 3, name, "dtype", "float32, bfloat16 or float16", dtype);
  ATLAS_CHECK(sizes.size() == 2 && sizes[0] > 0 && sizes[1] > 0, name, "sizes",
              "two positive sizes", std::to_string(sizes.size()));
  const int device = static_cast<int>(capability);
  ATLAS_CHECK(cuda_kernels::shared_kibibytes(device) > 0, name, "capability",
              "75, 80, 86, 87, 89, 90, 100 or 120", std::to_string(capability));
  const int first = static_cast<int>(sizes[0]), second = static_cast<int>(sizes[1]);
  if (op.rfind("poly_features", 0) == 0) {
    const auto plan = cuda_kernels::poly_features_backward_plan(first, second, device);
    return op == "poly_features" ? "16-byte pieces, " + std::to_string(plan.threads) + " threads"
                                 : describe(plan);
  }
  ATLAS_CHECK(op == "newton_schulz" || op == "newton_schulz_backward", name, "op",
              "an operator with CUDA kernels", op);
  return describe(cuda_kernels::newton_schulz_plan(static_cast<cuda_kernels::Dtype>(type), first,
                                                   second, allow_tf32, op != "newton_schulz",
                                                   device));
}

}  // namespace

ATLAS_CUDA_LIBRARY_QUERIES(library) { library.impl("cuda_plan", TORCH_BOX(&cuda_plan)); }

}  // namespace atlas::ops
