#pragma once
#include "kernels/cpu/array.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"

namespace atlas::kernels::cpu {

constexpr int kMaxDegree = 4;

// Number of monomials of total degree exactly `degree` in `variables` variables.
constexpr int64_t monomial_count(int64_t variables, int degree) {
  int64_t count = 1;
  for (int i = 1; i <= degree; ++i) count = count * (variables + i - 1) / i;
  return count;
}

// D = C(dim + degree, degree).
constexpr int64_t poly_feature_dim(int64_t dim, int degree) {
  return monomial_count(dim + 1, degree);
}

// roots[d] = square root of the multinomial coefficient of monomial d, in graded order; D elements.
void poly_roots(double* roots, int64_t dim, int degree);

// The c_l: `scales` holds degree + 1 values; 1 / sqrt(l!) where it is empty.
struct PolyScales {
  double c[kMaxDegree + 1];
};
PolyScales default_poly_scales();

struct PolyFeatures {
  Array x;           // [rows, dim], contiguous
  MutableArray out;  // [rows, D]
  int64_t rows, dim;
  int degree;
  PolyScales scales;
  const double* roots;  // poly_roots(dim, degree)
  void* scratch;        // poly_features_scratch elements of the compute type
  bool is_double;
};

struct PolyFeaturesBackward {
  Array grad;  // [rows, D]
  Array x;     // [rows, dim]
  MutableArray grad_x;
  double* grad_scales;  // [degree + 1]
  int64_t rows, dim;
  int degree;
  PolyScales scales;
  const double* roots;  // poly_roots(dim, degree)
  void* scratch;
  bool is_double;
};

ATLAS_DECLARE_PER_ISA(int64_t poly_features_scratch(int64_t dim, int degree, bool backward,
                                                    bool is_double, const ParallelFor& parallel);
                      void poly_features(const PolyFeatures& args, const ParallelFor& parallel);
                      void poly_features_backward(const PolyFeaturesBackward& args,
                                                  const ParallelFor& parallel))

// Elements of the compute type that both passes need as scratch.
int64_t poly_features_scratch(int64_t dim, int degree, bool backward, bool is_double,
                              const ParallelFor& parallel);
void poly_features(const PolyFeatures& args, const ParallelFor& parallel);
void poly_features_backward(const PolyFeaturesBackward& args, const ParallelFor& parallel);

}  // namespace atlas::kernels::cpu
