#pragma once
// Newton-Schulz of a batch of large matrices through torch's matrix products, on any device,
// without a host synchronisation (docs/math/newton_schulz.md, sections 1 to 3). A = X Xᵀ is taken
// on the shorter side, Z = a I + b A + c A², X <- Z X. Products in the inputs' dtype, all else in
// float32.
#include <torch/csrc/stable/ops.h>

#include <array>
#include <optional>
#include <vector>

#include "ops/check.h"

namespace atlas::ops {

// An operator of torch's that the stable headers do not wrap, by its schema name.
template <class... Arguments>
Tensor torch_op(const char* name, const char* overload, Arguments... arguments) {
  std::array<StableIValue, sizeof...(Arguments)> stack{torch::stable::detail::from(arguments)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

inline Tensor times(const Tensor& x, const Tensor& y) {
  return torch_op("aten::mul", "Tensor", x, y);
}
inline Tensor over(const Tensor& x, const Tensor& y) {
  return torch_op("aten::div", "Tensor", x, y);
}
inline Tensor minus(const Tensor& x, const Tensor& y) { return torch::stable::subtract(x, y); }
inline Tensor plus(const Tensor& x, const Tensor& y) { return torch::stable::subtract(x, y, -1.0); }
inline Tensor flipped(const Tensor& x) { return torch::stable::transpose(x, -1, -2); }

// [batch, m, n] -> [batch, 1, 1]
inline Tensor sum_of_matrix(const Tensor& x) {
  const int64_t sides[2] = {1, 2};
  return torch::stable::sum(x, torch::headeronly::IntHeaderOnlyArrayRef(sides, 2), true);
}

// x, with ones where it is zero: a divisor.
inline Tensor or_one(const Tensor& x, const Tensor& zero) {
  return plus(x, torch::stable::to(torch_op("aten::eq", "Tensor", x, zero), x.scalar_type()));
}

// [n, n] in float32.
inline Tensor identity(const Tensor& like, int64_t n) {
  return torch_op("aten::eye", "", n, std::optional<ScalarType>(ScalarType::Float),
                  std::optional<torch::headeronly::Layout>(),
                  std::optional<torch::stable::Device>(like.device()), std::optional<bool>(false));
}

class __attribute__((visibility("hidden"))) NewtonSchulzProducts {
 public:
  // x [batch, m, n], m <= n; coefficients: a, b, c of all steps, each without dimensions.
  NewtonSchulzProducts(const Tensor& x, std::vector<Tensor> coefficients, const Tensor& eps)
      : coefficients_(std::move(coefficients)),
        steps_(coefficients_.size() / 3),
        type_(x.scalar_type()),
        zero_(torch::stable::new_zeros(eps, {})),
        identity_(identity(eps, x.size(1))) {
    const Tensor wide = torch::stable::to(x, ScalarType::Float);
    const int64_t sides[2] = {1, 2};
    // The largest entry becomes 1: no square overflows.
    largest_ = or_one(torch::stable::amax(torch_op("aten::abs", "", wide),
                                          torch::headeronly::IntHeaderOnlyArrayRef(sides, 2), true),
                      zero_);
    scaled_ = over(wide, largest_);
    norm_ = torch_op("aten::sqrt", "", sum_of_matrix(times(scaled_, scaled_)));
    whole_ = or_one(plus(norm_, over(eps, largest_)), zero_);
  }

  Tensor forward() {
    Tensor x = over(scaled_, whole_);
    for (size_t step = 0; step < steps_; ++step) x = advance(x, step);
    return torch::stable::to(x, type_);
  }

  // grad [batch, m, n] -> [batch, m, n]
  Tensor backward(const Tensor& grad_out) {
    std::vector<Tensor> iterates{over(scaled_, whole_)};
    while (iterates.size() < steps_)
      iterates.push_back(advance(iterates.back(), iterates.size() - 1));
    Tensor grad = torch::stable::to(grad_out, ScalarType::Float);
    for (size_t step = steps_; step-- > 0;) grad = advance_backward(grad, iterates[step], step);
    const Tensor inward =
        over(sum_of_matrix(times(grad, scaled_)), times(or_one(norm_, zero_), whole_));
    const Tensor through = over(minus(grad, times(scaled_, inward)), times(whole_, largest_));
    const Tensor is_zero = torch_op("aten::ne", "Tensor", norm_, zero_);
    return torch::stable::to(times(through, torch::stable::to(is_zero, ScalarType::Float)), type_);
  }

 private:
  const Tensor& a(size_t step) const { return coefficients_[3 * step]; }
  const Tensor& b(size_t step) const { return coefficients_[3 * step + 1]; }
  const Tensor& c(size_t step) const { return coefficients_[3 * step + 2]; }

  Tensor product(const Tensor& x, const Tensor& y) const {
    return torch::stable::to(
        torch::stable::matmul(torch::stable::to(x, type_), torch::stable::to(y, type_)),
        ScalarType::Float);
  }

  Tensor factor(const Tensor& gram, size_t step) const {
    const Tensor polynomial = plus(times(gram, b(step)), times(product(gram, gram), c(step)));
    return plus(polynomial, times(identity_, a(step)));
  }

  Tensor advance(const Tensor& x, size_t step) const {
    return product(factor(product(x, flipped(x)), step), x);
  }

  Tensor advance_backward(const Tensor& grad, const Tensor& x, size_t step) const {
    const Tensor gram = product(x, flipped(x)), across = product(grad, flipped(x));
    const Tensor p = plus(across, flipped(across)), pa = product(p, gram);
    const Tensor r = plus(times(p, b(step)), times(plus(pa, flipped(pa)), c(step)));
    return plus(product(factor(gram, step), grad), product(r, x));
  }

  std::vector<Tensor> coefficients_;
  size_t steps_;
  ScalarType type_;
  Tensor zero_, identity_, largest_, scaled_, norm_, whole_;
};

}  // namespace atlas::ops
