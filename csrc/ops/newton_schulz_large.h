#pragma once
// Newton-Schulz of one large matrix through torch's matmul, in the compute dtype; the products take
// all threads there. Same mathematics as kernels/cpu/newton_schulz_tile.h, one step a stretch.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu/newton_schulz.h"
#include "ops/check.h"

namespace atlas::ops {

using torch::stable::matmul;

// factor * x + y
inline Tensor scaled_sum(double factor, const Tensor& x, const Tensor& y) {
  return torch::stable::subtract(y, x, -factor);
}

inline Tensor scaled(double factor, const Tensor& x) {
  return scaled_sum(factor, x, torch::stable::new_zeros(x, {1}));
}

// factor * x + shift * I
inline Tensor shifted(double factor, const Tensor& x, double shift) {
  const Tensor sum = scaled(factor, x);
  for (int64_t i = 0; i < sum.size(0); ++i) {
    if (sum.scalar_type() == ScalarType::Double)
      sum.mutable_data_ptr<double>()[i * (sum.size(1) + 1)] += shift;
    else
      sum.mutable_data_ptr<float>()[i * (sum.size(1) + 1)] += static_cast<float>(shift);
  }
  return sum;
}

inline Tensor plus_transposed(const Tensor& x) {
  return scaled_sum(1, x, torch::stable::transpose(x, 0, 1));
}

template <class T>
double sum_of_products(const T* x, const T* y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  return sum;
}

inline double sum_of_products(const Tensor& x, const Tensor& y) {  // contiguous
  return x.scalar_type() == ScalarType::Double
             ? sum_of_products(x.const_data_ptr<double>(), y.const_data_ptr<double>(), x.numel())
             : sum_of_products(x.const_data_ptr<float>(), y.const_data_ptr<float>(), x.numel());
}

template <class T>
double largest_size(const T* x, int64_t n) {
  T largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::abs(x[i]));
  return static_cast<double>(largest);
}

inline double largest_size(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? largest_size(x.const_data_ptr<double>(), x.numel())
                                               : largest_size(x.const_data_ptr<float>(), x.numel());
}

// The iterates of one matrix S [m, n], m <= n. A step: A = X X^T,
// Z = a I + A (b I + c A), X <- Z X.
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
      const Tensor gram = matmul(x, torch::stable::transpose(x, 0, 1));
      const Tensor z = shifted(1, matmul(gram, shifted(row[2], gram, row[1])), row[0]);
      if (keep) tape_.push_back({x, gram, z});
      if (!keep || step + 1 < options_.steps) x = matmul(z, x);
    }
    return scaled(options_.scale, x);
  }

  Tensor backward(const Tensor& grad_out) {  // [m, n] -> [m, n]
    forward(true);
    Tensor grad = scaled(options_.scale, grad_out);
    for (int step = options_.steps - 1; step >= 0; --step) {
      const double* row = options_.table + 3 * step;
      const Step& at = tape_[step];
      const Tensor d = plus_transposed(matmul(grad, torch::stable::transpose(at.x, 0, 1)));
      const Tensor e = plus_transposed(matmul(shifted(row[2], at.gram, row[1] / 2), d));
      grad = scaled_sum(1, matmul(at.z, grad), matmul(e, at.x));
    }
    const double inward = sum_of_products(grad, s_) / (norm_ * whole_);
    return scaled(power_ / whole_, scaled_sum(-inward, s_, grad));
  }

 private:
  struct Step {
    Tensor x, gram, z;
  };
  kernels::cpu::NewtonSchulz options_;
  Tensor s_;  // times power_
  double power_, norm_, whole_;
  std::vector<Step> tape_;
};

}  // namespace atlas::ops
