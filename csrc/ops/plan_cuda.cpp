// Which kernel a call would take on a device that need not be there, in words.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "kernels/cuda/capabilities.h"
#include "kernels/cuda/exp_omega_rule.h"
#include "kernels/cuda/exp_omega_update.h"
#include "kernels/cuda/newton_schulz.h"
#include "kernels/cuda/omega_rule.h"
#include "kernels/cuda/poly_features.h"
#include "ops/check.h"
#include "ops/cuda_context.h"
#include "ops/omega_rule_cuda.h"

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

std::string resources(const cuda_kernels::OmegaPlan& plan) {
  const std::string scratch =
      plan.scratch_bytes > 0 ? ", " + kibibytes(plan.scratch_bytes) + " scratch" : "";
  return resources(plan.threads, plan.shared_bytes) + scratch;
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

std::string describe(const cuda_kernels::OmegaPlan& plan, const cuda_kernels::OmegaOptions& o,
                     cuda_kernels::OmegaPass pass) {
  const bool muon = o.schedule.steps > 0;
  if (pass == cuda_kernels::OmegaPass::update) {
    return std::string("state in place, ") +
           (muon && plan.tensor_cores ? "split tf32 tensor cores for Newton-Schulz, "
                                      : "float multiply-adds, ") +
           resources(plan);
  }
  std::string text = muon ? "Newton-Schulz form: " : "dual form: ";
  text += !plan.tensor_cores ? "float multiply-adds, "
          : muon             ? "split tf32 tensor cores, "
                             : "tf32 tensor cores, ";
  if (muon) {
    text += pass == cuda_kernels::OmegaPass::backward ? "squares and the gradient of X "
                                                      : "squares and X ";
  } else {
    if (pass == cuda_kernels::OmegaPass::backward) text += "gradients of ";
    text += o.momentum ? "weights and momentum " : "weights ";
  }
  text += plan.on_chip ? "on chip, " : muon ? "not all on chip, " : "in device memory, ";
  if (plan.slices > 1) text += std::to_string(plan.slices) + " slices of V, ";
  if (plan.residents > 1) text += std::to_string(plan.residents) + " heads a multiprocessor, ";
  return text + resources(plan);
}

// The rows of all tokens beside what the plan counts, which has none of them.
std::string describe_exponential(const cuda_kernels::OmegaPlan& plan) {
  return std::string(plan.tensor_cores ? "tf32 tensor cores, " : "float multiply-adds, ") +
         (plan.on_chip ? "a chunk on chip, " : "a chunk partly in device memory, ") +
         resources(plan) + ", rows of all tokens in scratch";
}

std::string describe(const cuda_kernels::ExpOmegaUpdatePlan& plan) {
  return "state in place, float multiply-adds, blocks that walk over the past: " +
         resources(plan.walk) + "; that end the token: " + resources(plan.finish);
}

struct OmegaOperator {
  const char* name;
  cuda_kernels::OmegaPass pass;
  bool exponential;
};

constexpr OmegaOperator kOmegaOperators[] = {
    {"omega_rule", cuda_kernels::OmegaPass::forward, false},
    {"omega_rule_backward", cuda_kernels::OmegaPass::backward, false},
    {"omega_rule_update", cuda_kernels::OmegaPass::update, false},
    {"exp_omega_rule", cuda_kernels::OmegaPass::forward, true},
    {"exp_omega_rule_backward", cuda_kernels::OmegaPass::backward, true},
    {"exp_omega_rule_update", cuda_kernels::OmegaPass::update, true},
};

// Of one head; F = 0 belongs to a linear memory, degree 0 to keys as they are.
cuda_kernels::OmegaOptions omega_plan_options(const char* name, const std::vector<int64_t>& sizes) {
  constexpr const char* kSizes = "K, V, F, W, C, degree, matrices, momentum, ns_steps, ns_every";
  std::string got;
  for (const int64_t size : sizes) got += (got.empty() ? "" : ", ") + std::to_string(size);
  ATLAS_CHECK(sizes.size() == 10, name, "sizes", kSizes, got);
  const int64_t degree = sizes[5], matrices = sizes[6], momentum = sizes[7], steps = sizes[8];
  bool valid = sizes[0] > 0 && sizes[1] > 0 && sizes[3] > 0 && sizes[4] > 0 && sizes[9] > 0 &&
               degree >= 0 && degree <= 4 && matrices >= 1 && matrices <= 3 && steps >= 0 &&
               (momentum == 0 || momentum == 1) && (sizes[2] > 0) == (matrices > 1);
  for (const int64_t size : sizes) valid = valid && size < 65535;
  ATLAS_CHECK(valid, name, "sizes",
              std::string(kSizes) +
                  " with K, V, W, C, ns_every >= 1, F >= 1 where matrices is 2 or 3 and 0 "
                  "where it is 1, degree 0 to 4, momentum 0 or 1, all < 65535",
              got);
  OmegaShape shape{1, sizes[4], 1, sizes[0], sizes[1], features_of(sizes[0], degree), sizes[3], 1};
  shape.hidden = sizes[2];
  shape.matrices = matrices;
  check_omega_limits(name, "sizes", shape, sizes[4]);
  cuda_kernels::OmegaOptions o{};
  o.heads = 1;
  o.key = static_cast<int>(shape.key);
  o.value = static_cast<int>(shape.value);
  o.features = static_cast<int>(shape.features);
  o.hidden = static_cast<int>(shape.hidden);
  o.window = static_cast<int>(shape.window);
  o.matrices = static_cast<int>(matrices);
  o.chunk = static_cast<int>(sizes[4]);
  o.chunk_size = sizes[4];
  o.ns_every = sizes[9];
  o.degree = static_cast<int>(degree);
  o.momentum = momentum == 1;
  o.schedule.steps = static_cast<int>(steps);
  return o;
}

// sizes: m, n of newton_schulz; K, degree of poly_features; those of omega_plan_options.
std::string cuda_plan(std::string op, std::string dtype, std::vector<int64_t> sizes,
                      bool allow_tf32, int64_t capability) {
  const char* name = "cuda_plan";
  constexpr const char* kDtypes[] = {"float32", "bfloat16", "float16"};  // in the order of Dtype
  int type = 0;
  while (type < 3 && dtype != kDtypes[type]) ++type;
  ATLAS_CHECK(type < 3, name, "dtype", "float32, bfloat16 or float16", dtype);
  const int device = static_cast<int>(capability);
  ATLAS_CHECK(cuda_kernels::shared_kibibytes(device) > 0, name, "capability",
              "75, 80, 86, 87, 89, 90, 100 or 120", std::to_string(capability));
  for (const OmegaOperator& omega : kOmegaOperators) {
    if (op != omega.name) continue;
    cuda_kernels::OmegaOptions options = omega_plan_options(name, sizes);
    const auto kind = static_cast<cuda_kernels::Dtype>(type);
    if (omega.pass == cuda_kernels::OmegaPass::update) options.chunk = 1;
    if (!omega.exponential) {
      constexpr int64_t kHeads = 2;  // of one multiprocessor
      return describe(
          cuda_kernels::omega_rule_plan(omega.pass, options, kind, allow_tf32, kHeads, device, 1),
          options, omega.pass);
    }
    ATLAS_CHECK(options.degree == 0 && options.schedule.steps == 0, name, "sizes",
                "degree 0 and ns_steps 0 of " + op,
                std::to_string(options.degree) + ", " + std::to_string(options.schedule.steps));
    options.l2 = true;
    if (omega.pass == cuda_kernels::OmegaPass::update)
      return describe(cuda_kernels::exp_omega_update_plan(
          {options, cuda_kernels::ExpNormalize::none, 1, 0}, 0, 1, device, 1));
    return describe_exponential(cuda_kernels::exp_omega_rule_plan(
        omega.pass, {options, cuda_kernels::ExpNormalize::none, 1, 0}, kind, allow_tf32, 1, device,
        1));
  }
  const bool schulz = op == "newton_schulz" || op == "newton_schulz_backward";
  ATLAS_CHECK(schulz || op == "poly_features" || op == "poly_features_backward", name, "op",
              "an operator with CUDA kernels", op);
  ATLAS_CHECK(sizes.size() == 2 && sizes[0] > 0 && sizes[1] > 0, name, "sizes",
              "two positive sizes", std::to_string(sizes.size()));
  const int first = static_cast<int>(sizes[0]), second = static_cast<int>(sizes[1]);
  if (!schulz) {
    const auto plan = cuda_kernels::poly_features_backward_plan(first, second, device);
    return op == "poly_features" ? "16-byte pieces, " + std::to_string(plan.threads) + " threads"
                                 : describe(plan);
  }
  return describe(cuda_kernels::newton_schulz_plan(static_cast<cuda_kernels::Dtype>(type), first,
                                                   second, allow_tf32, op != "newton_schulz",
                                                   device));
}

}  // namespace

ATLAS_CUDA_LIBRARY_QUERIES(library) { library.impl("cuda_plan", TORCH_BOX(&cuda_plan)); }

}  // namespace atlas::ops
