#pragma once
// Monomials of total degree up to p in graded order (docs/math/poly_features.md): 1, x_i, x_i x_j
// with i <= j, ... A monomial of degree l weighs c_l times the root of its multinomial coefficient.
#include "kernels/cuda/prim.cuh"

namespace atlas::kernels::cuda {

// Number of monomials of total degree exactly `degree` (0 to 4) in n variables; written out,
// because a division by a variable is a function call on the device.
__host__ __device__ constexpr int64_t monomial_count(int64_t n, int degree) {
  const uint64_t v = static_cast<uint64_t>(n);
  const uint64_t count = degree == 0   ? 1
                         : degree == 1 ? v
                         : degree == 2 ? v * (v + 1) / 2
                         : degree == 3 ? v * (v + 1) * (v + 2) / 6
                                       : v * (v + 1) / 2 * ((v + 2) * (v + 3) / 2) / 6;
  return static_cast<int64_t>(count);
}

// c_l, by default 1 / sqrt(l!).
__device__ __forceinline__ float degree_scale(const float* scales, int degree) {
  if (scales != nullptr) return scales[degree];
  return degree < 2 ? 1.0f : degree == 2 ? 0.70710678f : degree == 3 ? 0.40824829f : 0.20412415f;
}

// 1 / n for n = 1 to 5, where a division would be a function call.
__device__ __forceinline__ float small_reciprocal(int n) {
  return n == 1 ? 1.0f : n == 2 ? 0.5f : n == 3 ? 1.0f / 3.0f : n == 4 ? 0.25f : 0.2f;
}

// Indices in ascending order; those past the monomial's own degree are `dim`.
template <int kDegree>
struct Monomial {
  int index[kDegree];
  float weight;
};

template <int kDegree>
__device__ __forceinline__ Monomial<kDegree> monomial_at(int64_t feature, int dim,
                                                         const float* scales) {
  int degree = 0;
  for (int64_t count = 1; feature >= count; count = monomial_count(dim, degree)) {
    feature -= count;
    ++degree;
  }
  Monomial<kDegree> result;
  int first = 0, run = 0;
  float multinomial = 1;
#pragma unroll
  for (int p = 0; p < kDegree; ++p) {
    result.index[p] = dim;
    if (p >= degree) continue;
    int i = first;
    if (p + 1 == degree) {
      i += static_cast<int>(feature);
    } else {
      for (int64_t with_i; feature >= (with_i = monomial_count(dim - i, degree - p - 1)); ++i)
        feature -= with_i;
    }
    run = p > 0 && i == first ? run + 1 : 1;
    multinomial *= static_cast<float>(p + 1) * small_reciprocal(run);
    result.index[p] = first = i;
  }
  result.weight = degree_scale(scales, degree) * square_root(multinomial);
  return result;
}

}  // namespace atlas::kernels::cuda
