#pragma once
// The polynomial map phi inside the rule: features are made tile by tile on chip, where they meet a
// matrix of the memory, and are never stored beyond it (docs/math/poly_features.md).
#include "kernels/cuda/monomial.cuh"
#include "kernels/cuda/omega_work.cuh"

namespace atlas::kernels::cuda {

// Fills the table of monomials and the scales; barrier by the caller.
__device__ __forceinline__ void begin_lift(const OmegaWork& w, const OmegaOptions& o) {
  if (o.degree == 0) return;
  each(o.features, [&](int d) {
    // A scale of one leaves the root of the multinomial coefficient.
    const float ones[kScaleSlots] = {1, 1, 1, 1, 1};
    const Monomial<4> monomial = monomial_at<4>(d, o.key, ones);
    for (int i = 0; i < 2; ++i)
      w.lift.indices[2 * d + i] = static_cast<uint32_t>(monomial.index[2 * i]) |
                                  static_cast<uint32_t>(monomial.index[2 * i + 1]) << 16;
    w.lift.roots[d] = monomial.weight;
  });
  each(o.degree + 1, [&](int l) { w.c[l] = degree_scale(o.scales, l); });
}

// The degree of feature d.
__device__ __forceinline__ int degree_of(int d, int key) {
  int degree = 0;
  while (degree < 4 && d >= monomial_count(key + 1, degree)) ++degree;
  return degree;
}

// The product of a monomial's variables in a row that has a one at `key`.
__device__ __forceinline__ float monomial_product(const OmegaLift& lift, int degree, int d,
                                                  const float* row) {
  const uint32_t front = lift.indices[2 * d];
  float value = row[front & 0xffffu];
  if (degree > 1) value *= row[front >> 16];
  if (degree > 2) {
    const uint32_t back = lift.indices[2 * d + 1];
    value *= row[back & 0xffffu];
    if (degree > 3) value *= row[back >> 16];
  }
  return value;
}

// tile [n, tp] = features [first, first + count) of rows [n, kp]. Barriers on both sides.
__device__ __forceinline__ void lift_tile(const OmegaWork& w, const OmegaOptions& o,
                                          const float* rows, int n, int first, int count) {
  const int kp = o.sizes.kp, tp = o.sizes.tp;
  __syncthreads();
  each(n, count, [&](int i, int j) {
    const int d = first + j;
    w.lift.tile[i * tp + j] = w.c[degree_of(d, o.key)] * w.lift.roots[d] *
                              monomial_product(w.lift, o.degree, d, rows + i * kp);
  });
  __syncthreads();
}

// Calls use(first, count) for every tile of features.
template <class Use>
__device__ __forceinline__ void each_tile(const OmegaOptions& o, const Use& use) {
  for (int first = 0; first < o.features; first += o.sizes.tile)
    use(first, min(o.sizes.tile, o.features - first));
}

}  // namespace atlas::kernels::cuda
