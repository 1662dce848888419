// phi(x) . phi(y) = sum_l c_l^2 (x . y)^l, and the backward against central differences.
#include "kernels/cpu/poly_features.h"

#include "check.h"

namespace cpu = atlas::kernels::cpu;

struct Case {
  int64_t rows, dim;
  int degree;
  cpu::PolyScales scales;
  std::vector<double> roots;
  int64_t features;
};

Case make_case(int64_t rows, int64_t dim, int degree) {
  Case c{rows, dim, degree, {}, {}, cpu::poly_feature_dim(dim, degree)};
  for (int l = 0; l <= degree; ++l) c.scales.c[l] = 1.0 / (1.0 + l);
  c.roots.resize(c.features);
  cpu::poly_roots(c.roots.data(), dim, degree);
  return c;
}

std::vector<double> features(const Case& c, const std::vector<double>& x) {
  const cpu::ParallelFor parallel = check::two_threads();
  std::vector<double> out(c.rows * c.features, NAN);
  std::vector<double> scratch(cpu::poly_features_scratch(c.dim, c.degree, false, true, parallel));
  cpu::poly_features({{x.data(), cpu::Dtype::f64},
                      {out.data(), cpu::Dtype::f64},
                      c.rows,
                      c.dim,
                      c.degree,
                      c.scales,
                      c.roots.data(),
                      scratch.data(),
                      true},
                     parallel);
  return out;
}

void test_kernel_identity(const Case& c) {
  const std::vector<double> x = check::normal<double>(c.rows * c.dim, 1);
  const std::vector<double> phi = features(c, x);
  for (int64_t a = 0; a < c.rows; ++a) {
    for (int64_t b = 0; b < c.rows; ++b) {
      double product = 0, lifted = 0, wanted = 0;
      for (int64_t i = 0; i < c.dim; ++i) product += x[a * c.dim + i] * x[b * c.dim + i];
      for (int64_t i = 0; i < c.features; ++i)
        lifted += phi[a * c.features + i] * phi[b * c.features + i];
      for (int l = 0; l <= c.degree; ++l)
        wanted += c.scales.c[l] * c.scales.c[l] * std::pow(product, l);
      CHECK_CLOSE(lifted, wanted, 1e-10);
    }
  }
}

double weighted_sum(const Case& c, const std::vector<double>& x, const std::vector<double>& grad) {
  const std::vector<double> phi = features(c, x);
  double sum = 0;
  for (size_t i = 0; i < phi.size(); ++i) sum += phi[i] * grad[i];
  return sum;
}

void test_backward(Case c) {
  const cpu::ParallelFor parallel = check::two_threads();
  std::vector<double> x = check::normal<double>(c.rows * c.dim, 2);
  const std::vector<double> grad = check::normal<double>(c.rows * c.features, 3);
  std::vector<double> grad_x(x.size(), NAN), grad_scales(c.degree + 1, 0.0);
  std::vector<double> scratch(cpu::poly_features_scratch(c.dim, c.degree, true, true, parallel));
  cpu::poly_features_backward({{grad.data(), cpu::Dtype::f64},
                               {x.data(), cpu::Dtype::f64},
                               {grad_x.data(), cpu::Dtype::f64},
                               grad_scales.data(),
                               c.rows,
                               c.dim,
                               c.degree,
                               c.scales,
                               c.roots.data(),
                               scratch.data(),
                               true},
                              parallel);
  auto difference = [&](double& variable) {
    const double step = 1e-5, centre = variable;
    variable = centre + step;
    const double above = weighted_sum(c, x, grad);
    variable = centre - step;
    const double below = weighted_sum(c, x, grad);
    variable = centre;
    return (above - below) / (2 * step);
  };
  for (size_t i = 0; i < x.size(); ++i) CHECK_CLOSE(grad_x[i], difference(x[i]), 1e-6);
  for (int l = 0; l <= c.degree; ++l) CHECK_CLOSE(grad_scales[l], difference(c.scales.c[l]), 1e-6);
}

void test_poly_features() {
  for (int degree = 1; degree <= 4; ++degree) {
    for (int64_t dim : {1, 2, 3, 5, 8, 17}) test_kernel_identity(make_case(5, dim, degree));
    for (int64_t dim : {1, 3, 9}) test_backward(make_case(3, dim, degree));
  }
}

int main() { return check::run(test_poly_features); }
