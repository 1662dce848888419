#pragma once
// What the CPU and the CUDA body of poly_features share.
#include <optional>
#include <vector>

#include "ops/check.h"
#include "ops/poly_scales.h"

namespace atlas::ops {

inline void check_poly_features(const char* op, const Tensor& x,
                                const std::optional<Tensor>& scales, int64_t degree) {
  check_floating(op, "x", x);
  ATLAS_CHECK(x.dim() >= 1 && x.size(x.dim() - 1) >= 1, op, "x", "shape [..., K] with K >= 1",
              describe(x));
  check_degree(op, degree, x.size(x.dim() - 1), 1);
  check_scales(op, "scales", scales, degree, x);
}

// [..., K] -> [..., D]
inline std::vector<int64_t> poly_features_shape(const Tensor& x, int64_t degree) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = kernels::cpu::poly_feature_dim(shape.back(), static_cast<int>(degree));
  return shape;
}

inline void check_poly_features_grad(const char* op, const Tensor& grad, const Tensor& x,
                                     int64_t degree) {
  check_device(op, "grad", grad, x);
  check_shape(op, "grad", grad, poly_features_shape(x, degree), "[..., D]");
  ATLAS_CHECK(grad.scalar_type() == x.scalar_type(), op, "grad", dtype_name(x.scalar_type()),
              describe(grad));
}

}  // namespace atlas::ops
