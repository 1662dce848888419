#include "kernels/cpu/poly_features.h"

#include <cmath>
#include <vector>

namespace atlas::kernels::cpu {

void poly_roots(double* roots, int64_t dim, int degree) {
  // Level l is the concatenation over i of x_i times the level l-1 monomials whose first index is
  // at least i; its multinomial coefficient is that of the factor times l / (how often i occurs,
  // always in front).
  std::vector<double> previous{1.0};
  std::vector<int> lead{0};
  roots[0] = 1.0;
  int64_t base = 1;
  for (int level = 1; level <= degree; ++level) {
    std::vector<double> coefficients;
    std::vector<int> counts;
    size_t suffix = 0;
    for (int64_t i = 0; i < dim; ++i) {
      const size_t same_lead = level == 1 ? 0 : monomial_count(dim - i, level - 2);
      for (size_t j = suffix; j < previous.size(); ++j) {
        const int count = 1 + (j < suffix + same_lead ? lead[j] : 0);
        coefficients.push_back(previous[j] * level / count);
        counts.push_back(count);
      }
      suffix += same_lead;
    }
    for (double c : coefficients) roots[base++] = std::sqrt(c);
    previous = std::move(coefficients);
    lead = std::move(counts);
  }
}

PolyScales default_poly_scales() {
  PolyScales scales{};
  double factorial = 1.0;
  for (int l = 0; l <= kMaxDegree; ++l) {
    if (l > 0) factorial *= l;
    scales.c[l] = 1.0 / std::sqrt(factorial);
  }
  return scales;
}

int64_t poly_features_scratch(int64_t dim, int degree, bool backward, bool is_double,
                              const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(poly_features_scratch, dim, degree, backward, is_double, parallel);
}

void poly_features(const PolyFeatures& args, const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(poly_features, args, parallel);
}

void poly_features_backward(const PolyFeaturesBackward& args, const ParallelFor& parallel) {
  ATLAS_CALL_PER_ISA(poly_features_backward, args, parallel);
}

}  // namespace atlas::kernels::cpu
