#pragma once
// Newton-Schulz of a batch of small matrices: the whole iteration in shared memory and registers,
// one read and one write of device memory.
//
//   X_0 = S / (||S||_F + eps),  Z = a I + b A + c A², A = XᵀX,  X <- X Z    (X upright)
//
// Steps come in stretches: within one, A <- Z A Z and Q <- Q Z, and X <- X Q at its end; a matrix
// that is not elongated has stretches of one step, Q = Z. Norm and sums are float; between products
// a matrix is held in Tile::Element. A zero matrix gives zero. Layout as in
// newton_schulz_block.cuh.
#include "kernels/cuda/newton_schulz_block.cuh"

namespace atlas::kernels::cuda {

// Elements of shared memory per matrix: X, A, and for stretches Z and Q.
template <class Traits>
__host__ __device__ constexpr int64_t forward_elements(const NewtonSchulzShape& shape) {
  return static_cast<int64_t>(shape.rows) * Traits::kLd +
         (shape.elongated() ? 3 : 1) * Traits::kSquare;
}

// The steps of a stretch on the small matrices; returns where Q is.
template <class Traits>
__device__ __forceinline__ typename Traits::Element* run_stretch(
    typename Traits::Element* x, typename Traits::Element* gram, const NewtonSchulzShape& shape,
    const NewtonSchulzSchedule& schedule, int begin, int end, int warp) {
  typename Traits::Element* z = gram + Traits::kSquare;
  typename Traits::Element* q = z + Traits::kSquare;
  square_product<Traits, true>(gram, x, x, shape.rows, warp, Keep());
  if (!shape.elongated()) {
    quadratic<Traits>(gram, gram, schedule, begin, warp);
    return gram;
  }
  for (int step = begin; step < end; ++step) {
    quadratic<Traits>(step == begin ? q : z, gram, schedule, step, warp);
    const typename Traits::Element* factor = step == begin ? q : z;
    if (step + 1 < end) {
      square_product<Traits, false>(gram, gram, factor, Traits::kSize, warp, Keep());
      square_product<Traits, false>(gram, gram, factor, Traits::kSize, warp, Keep());
    }
    if (step > begin) square_product<Traits, false>(q, q, z, Traits::kSize, warp, Keep());
  }
  return q;
}

template <class Tile, int kSize, class T>
ATLAS_KERNEL void __launch_bounds__(NewtonSchulzTraits<Tile, kSize>::kThreads)
    newton_schulz_kernel(const T* __restrict__ x,  // [batch, m, n]
                         T* __restrict__ out,      // [batch, m, n]
                         int64_t batch, int m, int n, float scale, float eps,
                         ATLAS_GRID_CONSTANT const NewtonSchulzSchedule schedule) {
  if constexpr (kCompiledCapability < Tile::kCapability) {
    __trap();
    return;
  }
  using Traits = NewtonSchulzTraits<Tile, kSize>;
  using Element = typename Traits::Element;
  const NewtonSchulzShape shape(m, n);
  const NewtonSchulzThread<Traits> me;
  DYNAMIC_SHARED(Element, shared);
  SHARED_ARRAY(float, lines, Traits::kMatrices* Traits::kWarps);
  Element* const matrix = shared + me.slot * forward_elements<Traits>(shape);
  Element* const gram = matrix + shape.rows * Traits::kLd;
  float* const line = lines + me.slot * Traits::kWarps;
  const int64_t index = static_cast<int64_t>(blockIdx.x) * Traits::kMatrices + me.slot;
  const bool valid = index < batch;  // the others keep step with the block's barriers
  const int64_t first = valid ? index * m * n : 0;
  const int size = shape.rows * Traits::kLd;

  clear_elements<Traits>(matrix, size, me.thread);
  __syncthreads();
  if (valid) load_upright<Traits>(matrix, x + first, shape, me.thread);
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  const MatrixNorm norm = measure<Traits>(matrix, size, eps, line, me);
  scale_elements<Traits>(matrix, size, norm.power, norm.factor(), me.thread);
  __syncthreads();
  for (int begin = 0; begin < schedule.steps;) {
    const int end = stretch_end(schedule, shape.elongated(), begin);
    const Element* q = run_stretch<Traits>(matrix, gram, shape, schedule, begin, end, me.warp);
    multiply_rows<Traits>(matrix, q, shape.rows, me.warp);
    __syncthreads();
    begin = end;
  }
  if (valid)
    each_element<Traits>(shape, me.thread, [&](int row, int column, int i) {
      out[first + i] = from_float<T>(Tile::load(matrix[Traits::at(row, column)]) * scale);
    });
}

}  // namespace atlas::kernels::cuda
