#pragma once
// Newton-Schulz of one large matrix through torch's matmul, in the compute dtype; the products take
// all threads there. Same mathematics as kernels/cpu/newton_schulz_tile.h, one step a stretch.
#include <torch/csrc/stable/ops.h>

#include "kernels/cpu/newton_schulz.h"
#include "ops/check.h"

namespace atlas::ops {

// factor * x + y
inline Tensor scaled_sum(double factor, const Tensor& x, const Tensor& y) {
  return torch::stable::subtract(y, x, -factor);
}

inline Tensor scaled(double factor, const Tensor& x) {
  return scaled_sum(factor, x, torch::stable::new_zeros(x, {1}));
}

inline Tensor plus_transposed(const Tensor& x) {
  return scaled_sum(1, x, torch::stable::transpose(x, 0, 1));
}

inline double sum_of_products(const Tensor& x, const Tensor& y) {
  double sum = 0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    sum += x.scalar_type() == ScalarType::Double
               ? x.const_data_ptr<double>()[i] * y.const_data_ptr<double>()[i]
               : static_cast<double>(x.const_data_ptr<float>()[i]) * y.const_data_ptr<float>()[i];
  }
  return sum;
}

inline double largest_size(const Tensor& x) {
  double largest = 0;
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double size =
        std::abs(x.scalar_type() == ScalarType::Double ? x.const_data_ptr<double>()[i]
                                                       : double{x.const_data_ptr<float>()[i]});
    largest = size > largest ? size : largest;
  }
  return largest;
}

// The iterates of one matrix S [m, n], m <= n. Step k: A = X X^T, P = b A + c A^2, X <- a X + P X.
class LargeNewtonSchulz {
 public:
  LargeNewtonSchulz(const Tensor& s, const kernels::cpu::NewtonSchulz& options)
      : options_(options), s_(s) {
    // A power of two near the largest entry keeps the squares in range.
    const double largest = largest_size(s);
    int exponent = 0;
    if (largest > 0 && std::isfinite(largest)) std::frexp(largest, &exponent);
    const int limit = s.scalar_type() == ScalarType::Double ? 1000 : 120;
    power_ = std::ldexp(1.0, -std::clamp(exponent, -limit, limit));
    s_ = scaled(power_, s);
    norm_ = std::sqrt(sum_of_products(s_, s_));
    whole_ = norm_ + options.eps * power_;
  }

  bool is_zero() const { return norm_ == 0; }

  // [m, n]; `keep` holds on to what backward needs.
  Tensor forward(bool keep) {
    Tensor x = scaled(1 / whole_, s_);
    for (int step = 0; step < options_.steps; ++step) {
      const double* row = options_.table + 3 * step;
      const Tensor gram = torch::stable::matmul(x, torch::stable::transpose(x, 0, 1));
      const Tensor p = scaled_sum(row[2], torch::stable::matmul(gram, gram), scaled(row[1], gram));
      if (keep) tape_.push_back({x, gram, p});
      if (!keep || step + 1 < options_.steps)
        x = scaled_sum(row[0], x, torch::stable::matmul(p, x));
    }
    return scaled(options_.scale, x);
  }

  Tensor backward(const Tensor& grad_out) {  // [m, n] -> [m, n]
    forward(true);
    Tensor grad = scaled(options_.scale, grad_out);
    for (int step = options_.steps - 1; step >= 0; --step) {
      const double* row = options_.table + 3 * step;
      const Step& at = tape_[step];
      const Tensor d =
          plus_transposed(torch::stable::matmul(grad, torch::stable::transpose(at.x, 0, 1)));
      const Tensor e = plus_transposed(
          scaled_sum(row[2], torch::stable::matmul(at.gram, d), scaled(row[1] / 2, d)));
      grad = scaled_sum(
          row[0], grad,
          scaled_sum(1, torch::stable::matmul(at.p, grad), torch::stable::matmul(e, at.x)));
    }
    const double inward = sum_of_products(grad, s_) / (norm_ * whole_);
    return scaled(power_ / whole_, scaled_sum(-inward, s_, grad));
  }

 private:
  struct Step {
    Tensor x, gram, p;
  };
  kernels::cpu::NewtonSchulz options_;
  Tensor s_;  // times power_
  double power_, norm_, whole_;
  std::vector<Step> tape_;
};

}  // namespace atlas::ops
