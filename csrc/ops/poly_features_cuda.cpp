#include <torch/csrc/stable/library.h>

#include "kernels/cuda/poly_features.h"
#include "ops/cuda_arguments.h"
#include "ops/poly_features.h"

namespace atlas::ops {
namespace {

namespace cuda_kernels = kernels::cuda;

// The kernels count the pieces of a row in 32 bits.
constexpr int64_t kMostFeatures = int64_t{1} << 28;

int64_t checked_features(const char* op, const Tensor& x, int64_t degree) {
  const int64_t features = poly_features_shape(x, degree).back();
  ATLAS_CHECK(features < kMostFeatures, op, "x", "K and degree with fewer than 2^28 features",
              std::to_string(features) + " features");
  return features;
}

Tensor poly_features_cuda(const Tensor& x,                      // [..., K]
                          const std::optional<Tensor>& scales,  // [degree + 1]
                          int64_t degree) {
  const char* op = "poly_features";
  check_poly_features(op, x, scales, degree);
  checked_features(op, x, degree);
  const cuda_kernels::Dtype dtype = cuda_dtype(op, "x", x);
  const Tensor out = torch::stable::new_empty(x, poly_features_shape(x, degree));
  if (out.numel() == 0) return out;
  const Tensor rows = torch::stable::contiguous(x);
  const std::optional<Tensor> c = float_copy(scales);
  const int64_t dim = x.size(x.dim() - 1);
  const CudaContext cuda(x);
  check_launch(
      cuda_kernels::poly_features(
          {dtype, cuda.read(rows, "x"), read_floats(cuda, c, "scales"), cuda.write(out, "out"),
           x.numel() / dim, static_cast<int>(dim), static_cast<int>(degree)},
          cuda.stream()),
      op);
  return out;
}

std::tuple<Tensor, Tensor> poly_features_backward_cuda(
    const Tensor& grad,                   // [..., D]
    const Tensor& x,                      // [..., K]
    const std::optional<Tensor>& scales,  // [degree + 1]
    int64_t degree,
    int64_t grad_mask) {  // 1: grad_x, 2: grad_scales
  const char* op = "poly_features_backward";
  check_poly_features(op, x, scales, degree);
  check_poly_features_grad(op, grad, x, degree);
  checked_features(op, x, degree);
  const cuda_kernels::Dtype dtype = cuda_dtype(op, "x", x);
  const bool want_x = (grad_mask & 1) != 0,
             want_scales = scales.has_value() && (grad_mask & 2) != 0;
  const Tensor none = torch::stable::new_empty(x, {0});
  const Tensor grad_x = want_x ? torch::stable::empty_like(torch::stable::contiguous(x)) : none;
  const Tensor grad_scales =
      torch::stable::new_zeros(x, {want_scales ? degree + 1 : 0}, ScalarType::Float);
  if (x.numel() > 0 && (want_x || want_scales)) {
    const CudaContext cuda(x);
    const Tensor rows = torch::stable::contiguous(x), grads = torch::stable::contiguous(grad);
    const std::optional<Tensor> c = float_copy(scales);
    const int dim = static_cast<int>(x.size(x.dim() - 1)), p = static_cast<int>(degree);
    const int64_t count = x.numel() / dim;
    const int64_t blocks = cuda_kernels::poly_features_blocks(count, dim, p);
    const auto floats = [&](int64_t n) {
      return torch::stable::new_empty(x, {n}, ScalarType::Float);
    };
    const Tensor partials = floats(want_scales ? blocks * (degree + 1) : 0);
    const Tensor scratch = floats(cuda_kernels::poly_features_scratch(count, dim, p));
    check_launch(
        cuda_kernels::poly_features_backward(
            {dtype, cuda.read(grads, "grad"), cuda.read(rows, "x"), read_floats(cuda, c, "scales"),
             want_x ? cuda.write(grad_x, "grad_x") : nullptr,
             want_scales ? static_cast<float*>(cuda.write(grad_scales, "grad_scales")) : nullptr,
             want_scales ? static_cast<float*>(cuda.write(partials, "partials")) : nullptr,
             static_cast<float*>(cuda.scratch(scratch, "scratch")), count, dim, p},
            cuda.stream()),
        op);
  }
  if (!want_scales) return {grad_x, torch::stable::new_empty(x, {0})};
  return {grad_x, torch::stable::to(grad_scales, scales->scalar_type())};
}

}  // namespace

ATLAS_CUDA_LIBRARY_IMPL(library) {
  library.impl("poly_features", TORCH_BOX(&poly_features_cuda));
  library.impl("poly_features_backward", TORCH_BOX(&poly_features_backward_cuda));
}

}  // namespace atlas::ops
