#pragma once
// Reading and checking the polynomial map's options, shared by poly_features and the omega rule.
#include <torch/csrc/stable/ops.h>

#include "kernels/cpu/poly_features.h"
#include "ops/check.h"

namespace atlas::ops {

inline void check_degree(const char* op, int64_t degree, int64_t dim, int64_t least) {
  ATLAS_CHECK(degree >= least && degree <= kernels::cpu::kMaxDegree, op, "degree",
              (least == 0 ? "None or 1 to " : "1 to ") + std::to_string(kernels::cpu::kMaxDegree),
              std::to_string(degree));
  ATLAS_CHECK(dim < (int64_t{1} << 12) || degree < 3, op, "degree", "1 or 2 where K >= 4096",
              std::to_string(degree));
}

inline void check_scales(const char* op, const char* argument, const std::optional<Tensor>& scales,
                         int64_t degree, const Tensor& x) {
  if (!scales.has_value()) return;
  check_device(op, argument, *scales, x);
  check_floating(op, argument, *scales);
  check_dtype_beside(op, argument, *scales, x);
  check_shape(op, argument, *scales, {degree + 1}, "[degree + 1]");
}

inline kernels::cpu::PolyScales read_scales(const std::optional<Tensor>& scales, int64_t degree) {
  if (!scales.has_value()) return kernels::cpu::default_poly_scales();
  const Tensor values = torch::stable::contiguous(torch::stable::to(*scales, ScalarType::Double));
  kernels::cpu::PolyScales result{};
  for (int64_t l = 0; l <= degree; ++l) result.c[l] = values.const_data_ptr<double>()[l];
  return result;
}

inline std::vector<double> poly_roots(int64_t dim, int64_t degree) {
  std::vector<double> roots(kernels::cpu::poly_feature_dim(dim, static_cast<int>(degree)));
  kernels::cpu::poly_roots(roots.data(), dim, static_cast<int>(degree));
  return roots;
}

}  // namespace atlas::ops
