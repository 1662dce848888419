#pragma once
// Polynomial features of rows, forward and backward (spec section 3, docs/math/poly_features.md).
//
// Forward, out [rows, D] from x [rows, dim]: rows are taken in groups of as many as an access has
// elements, so that a group starts on a 16-byte boundary whatever D is. A thread owns one 16-byte
// piece of every group: it works out its monomials once and then multiplies and stores. One pass
// over out; x comes from the first cache.
//
// Backward: kLanes lanes take a row. For each monomial m of degree l < p, largest degree first, the
// lanes run over its children m x_j, whose gradients stand side by side:
//   u_{m j} = weight g_{m j} + (what its own children left),
//   gx_j += u_{m j} m,  u_m = sum_j u_{m j} x_j
// One pass over grad; a lane always has the same j, so nothing is added to by two lanes. Sums are
// in float; the scales' gradient is summed per lane, then per block, then by one block in order.
#include "kernels/cuda/monomial.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/vec.cuh"

namespace atlas::kernels::cuda {

constexpr int kPolyThreads = 128;
constexpr int kPolyWarps = kPolyThreads / kWarp;

// Blocks of the backward that a multiprocessor holds by registers, 56 a thread, 72 at degree 4; and
// by threads, of which sm_75 has 1024.
__host__ __device__ constexpr int poly_backward_blocks(int degree, int capability) {
  return degree == 4 ? 7 : capability < 80 ? 8 : 9;
}

template <int kDegree>
__device__ __forceinline__ float monomial_value(const Monomial<kDegree>& m,
                                                const float (&x)[kDegree]) {
  float value = m.weight;
#pragma unroll
  for (int p = 0; p < kDegree; ++p) value *= x[p];
  return value;
}

// The value of a monomial at one row of x.
template <class T, int kDegree>
__device__ __forceinline__ float monomial_of_row(const Monomial<kDegree>& m, const T* row,
                                                 int dim) {
  float x[kDegree];
#pragma unroll
  for (int p = 0; p < kDegree; ++p) x[p] = m.index[p] < dim ? to_float(row[m.index[p]]) : 1.0f;
  return monomial_value(m, x);
}

// Grid: x over the 16-byte pieces of a group, y over groups.
template <class T, int kDegree>
ATLAS_KERNEL void __launch_bounds__(kPolyThreads)
    poly_features_kernel(const T* __restrict__ x,           // [rows, dim]
                         const float* __restrict__ scales,  // [kDegree + 1] or null
                         T* __restrict__ out,               // [rows, features]
                         int64_t rows, int dim, int64_t features) {
  constexpr int kWidth = kPackWidth<T>;
  const unsigned piece = blockIdx.x * kPolyThreads + threadIdx.x,
                 width = static_cast<unsigned>(features);
  if (piece >= width) return;  // a group of kWidth rows has `features` pieces
  Monomial<kDegree> monomials[kWidth];
  int row_of[kWidth];
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    const unsigned element = piece * kWidth + i;
    row_of[i] = static_cast<int>(element / width);
    monomials[i] = monomial_at<kDegree>(element % width, dim, scales);
  }
  for (int64_t first = static_cast<int64_t>(blockIdx.y) * kWidth; first < rows;
       first += static_cast<int64_t>(gridDim.y) * kWidth) {
    T* const target = out + first * features + static_cast<int64_t>(piece) * kWidth;
    if (first + kWidth <= rows) {
      float values[kWidth];
#pragma unroll
      for (int i = 0; i < kWidth; ++i)
        values[i] = monomial_of_row(monomials[i], x + (first + row_of[i]) * dim, dim);
      *reinterpret_cast<Pack16*>(target) = pack<T>(values);
      continue;
    }
#pragma unroll
    for (int i = 0; i < kWidth; ++i)
      if (first + row_of[i] < rows)
        target[i] =
            from_float<T>(monomial_of_row(monomials[i], x + (first + row_of[i]) * dim, dim));
  }
}

// Floats that the lanes of one row need for u of the monomials of degree 1 to p - 1.
__host__ __device__ constexpr int64_t poly_row_sums(int dim, int degree) {
  int64_t total = 0;
  for (int l = 1; l < degree; ++l) total += monomial_count(dim, l);
  return total;
}

// The monomials of one degree in order, with what their children need.
template <int kDegree>
struct Walk {
  int index[kDegree];
  int degree, dim;

  __device__ __forceinline__ Walk(int degree, int dim) : degree(degree), dim(dim) {
#pragma unroll
    for (int p = 0; p < kDegree; ++p) index[p] = 0;
  }

  __device__ __forceinline__ int last() const {
    int result = 0;
#pragma unroll
    for (int p = 0; p < kDegree; ++p)
      if (p + 1 == degree) result = index[p];
    return result;
  }

  // How often the last index occurs, and the multinomial coefficient.
  __device__ __forceinline__ void counts(int& run, float& multinomial) const {
    run = 0;
    multinomial = 1;
#pragma unroll
    for (int p = 0; p < kDegree; ++p) {
      if (p >= degree) continue;
      run = p > 0 && index[p] == index[p - 1] ? run + 1 : 1;
      multinomial *= static_cast<float>(p + 1) * small_reciprocal(run);
    }
  }

  __device__ __forceinline__ float product(const float* x) const {
    float value = 1;
#pragma unroll
    for (int p = 0; p < kDegree; ++p)
      if (p < degree) value *= x[index[p]];
    return value;
  }

  // False after the last one.
  __device__ __forceinline__ bool next() {
    int changed = -1;
#pragma unroll
    for (int p = 0; p < kDegree; ++p)
      if (p < degree && index[p] + 1 < dim) changed = p;
    if (changed < 0) return false;
    int value = 0;
#pragma unroll
    for (int p = 0; p < kDegree; ++p)
      if (p == changed) value = index[p] + 1;
#pragma unroll
    for (int p = 0; p < kDegree; ++p)
      if (p >= changed) index[p] = value;
    return true;
  }
};

// What the lanes of one row share.
struct PolyRow {
  float* x;       // [dim]
  float* grad_x;  // [dim]
  float* sums;    // [poly_row_sums]: u, degree by degree
};

// All monomials of degree l and their children. grad: of the children, the first of degree l + 1
// first; `sums` of degree l begin at `own`, of degree l + 1 at `below`.
template <class T, int kDegree, int kLanes>
__device__ __forceinline__ void poly_backward_level(const PolyRow& row, float& grad_scale, int l,
                                                    const T* grad, float scale, int64_t own,
                                                    int64_t below, int dim, int lane, bool valid) {
  Walk<kDegree> walk(l, dim);
  int64_t rank = 0, child = 0;
  for (bool more = true; more; more = walk.next(), ++rank) {
    const int last = walk.last();
    int run;
    float multinomial;
    walk.counts(run, multinomial);
    const float children = multinomial * static_cast<float>(l + 1);
    const float other = square_root(children),
                same = square_root(children * small_reciprocal(run + 1));
    const float product = walk.product(row.x);
    float sum = 0;
    for (int j = last / kLanes * kLanes + lane; j < dim; j += kLanes) {
      if (j < last) continue;
      const int64_t at = child + j - last;
      const float root = j == last ? same : other;
      const float g = valid ? to_float(grad[at]) * root : 0.0f;
      float u = g * scale;
      if (l + 1 < kDegree) u += row.sums[below + at];
      row.grad_x[j] += u * product;
      sum += u * row.x[j];
      grad_scale += g * product * row.x[j];
    }
    child += dim - last;
    if (l == 0) continue;
    sum = group_sum<kLanes>(sum);
    if (lane == 0) row.sums[own + rank] = sum;
  }
}

// Grid: blocks take groups of rows in turn. partials [blocks, kDegree + 1] or null.
template <class T, int kDegree, int kLanes>
ATLAS_KERNEL void __launch_bounds__(kPolyThreads,
                                    poly_backward_blocks(kDegree, kCompiledCapability))
    poly_features_backward_kernel(const T* __restrict__ grad,        // [rows, features]
                                  const T* __restrict__ x,           // [rows, dim]
                                  const float* __restrict__ scales,  // [kDegree + 1] or null
                                  T* __restrict__ grad_x,            // [rows, dim] or null
                                  float* __restrict__ partials,      // [blocks, kDegree + 1]
                                  float* __restrict__ scratch,  // sums, where shared is too small
                                  int64_t rows, int dim, int64_t features) {
  constexpr int kRows = kPolyThreads / kLanes;  // rows of a block at a time
  DYNAMIC_SHARED(float, shared);
  SHARED_ARRAY(float, totals, kPolyWarps*(kDegree + 1));
  const int slot = static_cast<int>(threadIdx.x) / kLanes, lane = lane_id() % kLanes;
  const int64_t sums = poly_row_sums(dim, kDegree);
  PolyRow row;
  row.x = shared + slot * 2 * dim;
  row.grad_x = row.x + dim;
  row.sums = scratch == nullptr
                 ? shared + kRows * 2 * dim + slot * sums
                 : scratch + (static_cast<int64_t>(blockIdx.x) * kRows + slot) * sums;
  float grad_scales[kDegree + 1] = {};
  // Every lane of a warp goes through every turn: shuffles need them all.
  for (int64_t first = static_cast<int64_t>(blockIdx.x) * kRows; first < rows;
       first += static_cast<int64_t>(gridDim.x) * kRows) {
    const bool valid = first + slot < rows;
    const int64_t at = valid ? first + slot : 0;
    const T* g = grad + at * features;
    sync_warp();
    for (int j = lane; j < dim; j += kLanes) {
      row.x[j] = to_float(x[at * dim + j]);
      row.grad_x[j] = 0;
    }
    sync_warp();
    if (valid && lane == 0) grad_scales[0] += to_float(g[0]);
#pragma unroll
    for (int l = kDegree - 1; l >= 0; --l) {
      const int64_t below = poly_row_sums(dim, l + 1);
      poly_backward_level<T, kDegree, kLanes>(
          row, grad_scales[l + 1], l, g + monomial_count(dim + 1, l), degree_scale(scales, l + 1),
          l > 0 ? poly_row_sums(dim, l) : 0, below, dim, lane, valid);
      sync_warp();
    }
    if (grad_x == nullptr || !valid) continue;
    for (int j = lane; j < dim; j += kLanes) grad_x[at * dim + j] = from_float<T>(row.grad_x[j]);
  }
  if (partials == nullptr) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
#pragma unroll
  for (int l = 0; l <= kDegree; ++l) {
    const float sum = group_sum(grad_scales[l]);
    if (lane_id() == 0) totals[warp * (kDegree + 1) + l] = sum;
  }
  __syncthreads();
  if (threadIdx.x > kDegree) return;
  float total = 0;
  for (int i = 0; i < kPolyWarps; ++i) total += totals[i * (kDegree + 1) + threadIdx.x];
  partials[static_cast<int64_t>(blockIdx.x) * (kDegree + 1) + threadIdx.x] = total;
}

// out [columns] = sum over blocks of partials [blocks, columns]; one warp a column.
ATLAS_KERNEL void __launch_bounds__(kWarp)
    sum_partials_kernel(const float* __restrict__ partials, float* __restrict__ out, int64_t blocks,
                        int columns);

}  // namespace atlas::kernels::cuda
