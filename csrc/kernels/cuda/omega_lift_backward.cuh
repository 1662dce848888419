#pragma once
// The polynomial map's adjoint inside the rule, tile by tile (docs/math/poly_features.md, section
// 3). A thread has one variable of one row: it runs over the monomials m of lower degree, whose
// product with the variable is the monomial that the gradient is of.
#include "kernels/cuda/omega_grads.cuh"
#include "kernels/cuda/omega_lift.cuh"

namespace atlas::kernels::cuda {

// monomial_count for feature numbers below 2^28.
__device__ __forceinline__ int count_of(int n, int degree) {
  const unsigned v = static_cast<unsigned>(n);
  const unsigned count = degree == 0   ? 1
                         : degree == 1 ? v
                         : degree == 2 ? v * (v + 1) / 2
                         : degree == 3 ? v * (v + 1) * (v + 2) / 6
                                       : v * (v + 1) / 2 * ((v + 2) * (v + 3) / 2) / 6;
  return static_cast<int>(count);
}

// Where the monomial of these `degree` ascending indices stands among all features.
__device__ __forceinline__ int feature_of(const int (&index)[4], int degree, int key) {
  int feature = degree == 0 ? 0 : count_of(key + 1, degree - 1), before = 0;
#pragma unroll
  for (int p = 0; p < 4; ++p) {
    if (p >= degree) break;
    feature += count_of(key - before, degree - p) - count_of(key - index[p], degree - p);
    before = index[p];
  }
  return feature;
}

// grad_rows [n, kp] += phi'(rows)ᵀ times the gradients of features [first, first + count) in
// lift.tile; adds to the scales' gradients. Barrier by the caller on both sides.
__device__ __forceinline__ void tile_backward(const OmegaWork& w, const OmegaGrads& g,
                                              const OmegaOptions& o, float* grad_rows,
                                              const float* rows, int n, int first, int count) {
  const int kp = o.sizes.kp, tp = o.sizes.tp, key = o.key;
  float grad_scale[kScaleSlots] = {};
  each(n, key, [&](int i, int variable) {
    const float* const row = rows + i * kp;
    const float* const grad = w.lift.tile + i * tp - first;
    float sum = 0;
#pragma unroll
    for (int l = 0; l < 4; ++l) {
      if (l >= o.degree) break;
      const int begin = l == 0 ? 0 : count_of(key + 1, l - 1), end = count_of(key + 1, l);
      float scale_sum = 0;
      for (int parent = begin; parent < end; ++parent) {
        // The child's indices: the parent's with the variable put in its place.
        int index[4];
        int multiplicity = 1;
        bool placed = false;
#pragma unroll
        for (int p = 0; p < 4; ++p) {
          if (p > l) break;
          const uint32_t pair = w.lift.indices[2 * parent + p / 2];
          const int own = static_cast<int>(p % 2 == 0 ? pair & 0xffffu : pair >> 16);
          if (p < l && own == variable) ++multiplicity;
          if (!placed && (p == l || own >= variable)) {
            index[p] = variable;
            placed = true;
            if (p + 1 < 4) index[p + 1] = own;
          } else if (!placed) {
            index[p] = own;
          } else if (p + 1 < 4) {
            index[p + 1] = own;
          }
        }
        const int child = feature_of(index, l + 1, key);
        if (child < first || child >= first + count) continue;
        const float move = grad[child] * w.lift.roots[child] * static_cast<float>(multiplicity) *
                           monomial_product(w.lift, o.degree, parent, row);
        scale_sum += move;
      }
      sum += w.c[l + 1] * scale_sum;
      grad_scale[l + 1] += scale_sum * row[variable] * small_reciprocal(l + 1);
    }
    if (variable == 0 && first == 0) grad_scale[0] += grad[0];
    grad_rows[i * kp + variable] += sum;
  });
#pragma unroll
  for (int l = 0; l < kScaleSlots; ++l)
    if (l <= o.degree) g.scales[l * block_threads() + thread_id()] += grad_scale[l];
}

// grad_rows [n, kp] += what the gradient of phi(rows) brings; contribute(out, ld, first, count)
// adds that gradient's columns [first, first + count) to out, and ends with a barrier.
template <class Contribute>
__device__ __forceinline__ void lifted_backward(const OmegaWork& w, const OmegaGrads& g,
                                                const OmegaOptions& o, float* grad_rows,
                                                const float* rows, int n,
                                                const Contribute& contribute) {
  const OmegaSizes& sz = o.sizes;
  const bool lifted = o.degree > 0;
  const int step = lifted ? sz.tile : o.features;
  for (int first = 0; first < o.features; first += step) {
    const int count = min(step, o.features - first);
    if (lifted) {
      __syncthreads();
      each(n, count, [&](int i, int j) { w.lift.tile[i * sz.tp + j] = 0; });
      __syncthreads();
    }
    contribute(lifted ? w.lift.tile : grad_rows, lifted ? sz.tp : sz.kp, first, count);
    if (lifted) tile_backward(w, g, o, grad_rows, rows, n, first, count);
  }
  __syncthreads();
}

// out [n, count] += alpha row_i (d matrixᵀ)'s columns [first, first + count), d [n, width].
template <Arithmetic kArithmetic>
__device__ __forceinline__ void back_through(float* out, int ld, int n, int first, int count,
                                             const float* d, int d_ld, int width,
                                             const View& matrix, float alpha, const float* row) {
  product<kArithmetic>(
      out, ld, n, count, width, plain(d, d_ld),
      {matrix.at + static_cast<int64_t>(first) * matrix.row, matrix.column, matrix.row},
      {alpha, 1, nullptr, row});
}

}  // namespace atlas::kernels::cuda
