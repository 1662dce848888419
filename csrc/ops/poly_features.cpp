#include "ops/poly_features.h"

#include <torch/csrc/stable/library.h>

#include "kernels/cpu/poly_features.h"
#include "ops/dispatch.h"

namespace atlas::ops {
namespace {

namespace cpu = kernels::cpu;

Tensor poly_features_cpu(const Tensor& x,                      // [..., K]
                         const std::optional<Tensor>& scales,  // [degree + 1]
                         int64_t degree) {
  check_poly_features("poly_features", x, scales, degree);
  const int64_t dim = x.size(x.dim() - 1);
  const Tensor out = new_result(x, poly_features_shape(x, degree), x.scalar_type());
  if (out.numel() == 0) return out;
  const Tensor rows = torch::stable::contiguous(x);
  const std::vector<double> roots = poly_roots(dim, degree);
  const bool is_double = compute_type(x) == ScalarType::Double;
  const cpu::ParallelFor parallel = torch_threads();
  const Tensor memory = scratch(
      x, cpu::poly_features_scratch(dim, static_cast<int>(degree), false, is_double, parallel));
  cpu::poly_features(
      {array(rows), mutable_array(out), x.numel() / dim, dim, static_cast<int>(degree),
       read_scales(scales, degree), roots.data(), memory.mutable_data_ptr(), is_double},
      parallel);
  return out;
}

std::tuple<Tensor, Tensor> poly_features_backward_cpu(
    const Tensor& grad,                   // [..., D]
    const Tensor& x,                      // [..., K]
    const std::optional<Tensor>& scales,  // [degree + 1]
    int64_t degree,
    int64_t grad_mask) {  // 1: grad_x, 2: grad_scales
  const char* op = "poly_features_backward";
  check_poly_features(op, x, scales, degree);
  check_poly_features_grad(op, grad, x, degree);
  const int64_t dim = x.size(x.dim() - 1);

  const Tensor grad_x = torch::stable::empty_like(torch::stable::contiguous(x));
  const bool want_scales = scales.has_value() && (grad_mask & 2) != 0;
  Tensor grad_scales = want_scales
                           ? torch::stable::new_zeros(*scales, {degree + 1}, ScalarType::Double)
                           : torch::stable::new_empty(x, {0});
  if (x.numel() > 0) {
    const Tensor rows = torch::stable::contiguous(x), grads = torch::stable::contiguous(grad);
    const std::vector<double> roots = poly_roots(dim, degree);
    double sums[cpu::kMaxDegree + 1] = {};
    const bool is_double = compute_type(x) == ScalarType::Double;
    const cpu::ParallelFor parallel = torch_threads();
    const Tensor memory = scratch(
        x, cpu::poly_features_scratch(dim, static_cast<int>(degree), true, is_double, parallel));
    cpu::poly_features_backward(
        {array(grads), array(rows), mutable_array(grad_x), sums, x.numel() / dim, dim,
         static_cast<int>(degree), read_scales(scales, degree), roots.data(),
         memory.mutable_data_ptr(), is_double},
        parallel);
    if (want_scales)
      for (int64_t l = 0; l <= degree; ++l) grad_scales.mutable_data_ptr<double>()[l] = sums[l];
  }
  if (want_scales) grad_scales = torch::stable::to(grad_scales, scales->scalar_type());
  return {(grad_mask & 1) ? grad_x : torch::stable::new_empty(x, {0}), grad_scales};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CPU, library) {
  library.impl("poly_features", TORCH_BOX(&poly_features_cpu));
  library.impl("poly_features_backward", TORCH_BOX(&poly_features_backward_cpu));
}

}  // namespace atlas::ops
