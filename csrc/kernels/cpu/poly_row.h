// The polynomial map of one row, forward and backward; included by kernel bodies after isa_begin.h.
#pragma once
#include "kernels/cpu/poly_features.h"
#include "kernels/cpu/simd.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// What all rows of one call share. roots has D values and one vector of slack (any finite value).
template <class T>
struct PolyMap {
  int64_t dim;
  int degree;
  T c[kMaxDegree + 1];
  const T* roots;

  int64_t features() const { return poly_feature_dim(dim, degree); }
};

// Elements of scratch for the plain monomials of levels 2 .. degree-1, with a vector of slack
// behind each level.
template <class T>
inline int64_t poly_monomials_scratch(int64_t dim, int degree) {
  int64_t total = 0;
  for (int level = 2; level < degree; ++level)
    total += padded<T>(monomial_count(dim, level)) + kWidth<T>;
  return total;
}

template <class T>
inline void poly_map_init(PolyMap<T>& map, T* roots, int64_t dim, int degree,
                          const PolyScales& scales, const double* exact_roots) {
  map.dim = dim;
  map.degree = degree;
  for (int l = 0; l <= degree; ++l) map.c[l] = static_cast<T>(scales.c[l]);
  const int64_t d = map.features();
  for (int64_t i = 0; i < d; ++i) roots[i] = static_cast<T>(exact_roots[i]);
  fill_zero(roots + d, kWidth<T>);
  map.roots = roots;
}

// out [D + one vector of slack, overwritten] = phi(x); x has a vector of readable slack. Blocks are
// written in ascending order in whole vectors: what one block writes too much, the next one
// overwrites.
template <class T>
inline void poly_row(T* out, const T* x, const PolyMap<T>& map, T* monomials) {
  constexpr int64_t w = kWidth<T>;
  const int64_t dim = map.dim;
  out[0] = map.c[0];
  const T* previous = x;
  int64_t base = 1, previous_size = dim;
  for (int64_t i = 0; i < dim; i += w) store(out + base + i, load(x + i) * map.c[1]);
  base += dim;
  for (int level = 2; level <= map.degree; ++level) {
    const bool keep = level < map.degree;
    int64_t position = 0, suffix = 0;
    for (int64_t i = 0; i < dim; ++i) {
      const int64_t size = previous_size - suffix;
      const T factor = x[i], scaled = x[i] * map.c[level];
      T* row = out + base + position;
      const T* roots = map.roots + base + position;
      for (int64_t j = 0; j < size; j += w)
        store(row + j, load(previous + suffix + j) * scaled * load(roots + j));
      if (keep)
        for (int64_t j = 0; j < size; j += w)
          store(monomials + position + j, load(previous + suffix + j) * factor);
      position += size;
      suffix += monomial_count(dim - i, level - 2);
    }
    base += position;
    if (keep) {
      previous = monomials;
      previous_size = position;
      monomials += padded<T>(position) + w;
    }
  }
}

// Lanes below `count` of x, zero elsewhere.
template <class T>
ATLAS_INLINE Vec<T> keep_lanes(Vec<T> x, int64_t count) {
  T keep[kWidth<T>];
  for (int64_t i = 0; i < kWidth<T>; ++i) keep[i] = static_cast<T>(i);
  return load(keep) < splat(static_cast<T>(count)) ? x : Vec<T>{};
}

// Adds d phi(x)ᵀ g to grad_x [dim + slack] and the gradient of c_l to grad_c.
// `upper` holds, level by level like `monomials`, what comes down from the level above: H_l = sum
// over the blocks i of x_i G_{l+1}.
template <class T>
inline void poly_row_backward(T* grad_x, T* grad_c, const T* grad, const T* x,
                              const PolyMap<T>& map, T* monomials, T* upper) {
  constexpr int64_t w = kWidth<T>;
  const int64_t dim = map.dim;
  const T* level_monomials[kMaxDegree + 1] = {nullptr, x};
  T* level_upper[kMaxDegree + 1] = {nullptr, grad_x};
  int64_t base[kMaxDegree + 1] = {0, 1};
  for (int level = 2; level <= map.degree; ++level) {
    const int64_t size = monomial_count(dim, level);
    base[level] = base[level - 1] + monomial_count(dim, level - 1);
    if (level == map.degree) break;
    int64_t position = 0, suffix = 0;
    const int64_t previous_size = monomial_count(dim, level - 1);
    for (int64_t i = 0; i < dim; ++i) {
      for (int64_t j = 0; j < previous_size - suffix; j += w)
        store(monomials + position + j, load(level_monomials[level - 1] + suffix + j) * x[i]);
      position += previous_size - suffix;
      suffix += monomial_count(dim - i, level - 2);
    }
    fill_zero(upper, padded<T>(size) + w);
    level_monomials[level] = monomials;
    level_upper[level] = upper;
    monomials += padded<T>(size) + w;
    upper += padded<T>(size) + w;
  }
  for (int level = map.degree; level >= 2; --level) {
    const int64_t previous_size = monomial_count(dim, level - 1);
    const bool top = level == map.degree;
    int64_t position = 0, suffix = 0;
    for (int64_t i = 0; i < dim; ++i) {
      const int64_t size = previous_size - suffix;
      const T* g = grad + base[level] + position;
      const T* roots = map.roots + base[level] + position;
      const T* factor = level_monomials[level - 1] + suffix;
      T* lower = level_upper[level - 1] + suffix;
      Vec<T> own{}, from_above{};
      for (int64_t j = 0; j < size; j += w) {
        Vec<T> own_grad = load(g + j) * load(roots + j);
        Vec<T> above = top ? Vec<T>{} : load(level_upper[level] + position + j);
        Vec<T> other = load(factor + j);
        if (size - j < w) {  // behind the block's end stands the next one, or nothing
          own_grad = keep_lanes<T>(own_grad, size - j);
          other = keep_lanes<T>(other, size - j);
          if (!top) above = keep_lanes<T>(above, size - j);
        }
        own += own_grad * other;
        if (!top) from_above += above * other;
        store(lower + j, load(lower + j) + (own_grad * map.c[level] + above) * x[i]);
      }
      const T own_sum = sum_lanes<T>(own);
      grad_x[i] += own_sum * map.c[level] + (top ? T(0) : sum_lanes<T>(from_above));
      grad_c[level] += own_sum * x[i];
      position += size;
      suffix += monomial_count(dim - i, level - 2);
    }
  }
  grad_c[0] += grad[0];
  grad_c[1] += dot(grad + 1, x, dim);
  axpy(grad_x, map.c[1], grad + 1, dim);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
