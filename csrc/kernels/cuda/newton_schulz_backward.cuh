#pragma once
// Backward of Newton-Schulz by recomputation, docs/math/newton_schulz.md section 3. The iterates of
// the matrices at hand go through device memory (as many as blocks run at a time, not the whole
// batch's), everything else stays on chip. With G the adjoint of X after a step, upright:
//
//   P = XᵀG + GᵀX,  R = b P + c (P A + A P),  G <- G Z + X R
//
// G is scaled by a power of two, so that 16-bit elements neither overflow nor vanish.
#include "kernels/cuda/newton_schulz_block.cuh"

namespace atlas::kernels::cuda {

// Elements of shared memory per matrix: X, G, and three squares.
template <class Traits>
__host__ __device__ constexpr int64_t backward_elements(const NewtonSchulzShape& shape) {
  return 2 * static_cast<int64_t>(shape.rows) * Traits::kLd + 3 * Traits::kSquare;
}

// Elements of device memory per matrix at hand: X before every step.
template <class Traits>
__host__ __device__ constexpr int64_t tape_elements(const NewtonSchulzShape& shape, int steps) {
  return static_cast<int64_t>(steps) * shape.rows * Traits::kLd;
}

// target = M + Mᵀ times factor, plus a symmetric addend where it is given; either may be target. A
// warp takes squares of 8 x 8 elements with their mirror images, a lane two neighbours: of the
// lower triangle row `warp`, and row `warp` from the end. No bank conflicts along or across.
template <class Traits>
__device__ __forceinline__ void symmetrise(typename Traits::Element* target,
                                           const typename Traits::Element* m,
                                           const typename Traits::Element* addend, float factor,
                                           float addend_factor, int warp) {
  using Tile = typename Traits::Tile;
  constexpr int kSquares = Traits::kSize / 8;
  const int lane = fresh_lane_id();
#pragma unroll 1
  for (int i = 0; i <= kSquares; ++i) {
    const int square_row = i <= warp ? warp : kSquares - 1 - warp;
    const int square_column = i <= warp ? i : i - warp - 1;
    const int row = 8 * square_row + lane / 4, column = 8 * square_column + lane % 4 * 2;
    float v0, v1, extra0 = 0, extra1 = 0;
    Tile::load2(m + Traits::at(row, column), v0, v1);
    v0 = factor * (v0 + Tile::load(m[Traits::at(column, row)]));
    v1 = factor * (v1 + Tile::load(m[Traits::at(column + 1, row)]));
    if (addend != nullptr) {
      Tile::load2(addend + Traits::at(row, column), extra0, extra1);
      v0 += addend_factor * extra0;
      v1 += addend_factor * extra1;
    }
    sync_warp();  // on the diagonal a square is its own image
    Tile::store2(target + Traits::at(row, column), v0, v1);
    if (square_row != square_column) {
      target[Traits::at(column, row)] = Tile::store(v0);
      target[Traits::at(column + 1, row)] = Tile::store(v1);
    }
  }
  __syncthreads();
}

// G <- G Z + X R, 16 rows at a time.
template <class Traits>
__device__ __forceinline__ void multiply_grad_rows(typename Traits::Element* grad,
                                                   const typename Traits::Element* z,
                                                   const typename Traits::Element* x,
                                                   const typename Traits::Element* r, int rows,
                                                   int warp) {
  for (int first = 16 * warp; first < rows; first += 16 * Traits::kWarps) {
    typename Traits::Rows sums;
    sums.clear();
    Traits::Tile::template multiply<false, Traits::kSize>(sums, grad, Traits::kLd, first, z,
                                                          Traits::kLd, Traits::kSize);
    Traits::Tile::template multiply<false, Traits::kSize>(sums, x, Traits::kLd, first, r,
                                                          Traits::kLd, Traits::kSize);
    sync_warp();
    write_rows<Traits>(grad, sums, first, Keep());
    sync_warp();
  }
}

template <class Traits>
__device__ __forceinline__ void copy_elements(typename Traits::Element* to,
                                              const typename Traits::Element* from, int count,
                                              int thread) {
  for (int i = thread; i < count; i += NewtonSchulzThread<Traits>::kCount) to[i] = from[i];
}

// One step of the adjoint; squares: three of them, contents do not matter.
template <class Traits>
__device__ __forceinline__ void step_backward(typename Traits::Element* grad,
                                              const typename Traits::Element* x,
                                              typename Traits::Element* squares, int rows,
                                              const NewtonSchulzSchedule& schedule, int step,
                                              const NewtonSchulzThread<Traits>& me) {
  typename Traits::Element *gram = squares, *p = gram + Traits::kSquare, *y = p + Traits::kSquare;
  square_product<Traits, true>(gram, x, x, rows, me.warp, Keep());
  square_product<Traits, true>(p, x, grad, rows, me.warp, Keep());
  symmetrise<Traits>(p, p, static_cast<typename Traits::Element*>(nullptr), 1.0f, 0.0f, me.warp);
  square_product<Traits, false>(y, p, gram, Traits::kSize, me.warp, Keep());
  symmetrise<Traits>(p, y, p, schedule_entry(schedule, step, 2), schedule_entry(schedule, step, 1),
                     me.warp);
  quadratic<Traits>(gram, gram, schedule, step, me.warp);
  multiply_grad_rows<Traits>(grad, gram, x, p, rows, me.warp);
  __syncthreads();
}

// Blocks of a multiprocessor that registers must leave room for: about what shared memory does.
// Unasked, ptxas spills for more.
template <int kSize>
constexpr int kLeastBlocks = kSize == 16   ? 6
                             : kSize == 32 ? 4
                                           : 1;

template <class Tile, int kSize, class T>
ATLAS_KERNEL void __launch_bounds__(NewtonSchulzTraits<Tile, kSize>::kThreads, kLeastBlocks<kSize>)
    newton_schulz_backward_kernel(const T* __restrict__ x,       // [batch, m, n]
                                  const T* __restrict__ grad,    // [batch, m, n]
                                  T* __restrict__ grad_x,        // [batch, m, n]
                                  typename Tile::Element* tape,  // [blocks, matrices, steps, X]
                                  int64_t batch, int m, int n, float scale, float eps,
                                  ATLAS_GRID_CONSTANT const NewtonSchulzSchedule schedule) {
  // Never launched there: no such tensor cores, or too little shared memory.
  if constexpr (kCompiledCapability < (kSize > 64 ? 80 : Tile::kCapability)) {
    __trap();
    return;
  }
  using Traits = NewtonSchulzTraits<Tile, kSize>;
  using Element = typename Traits::Element;
  const NewtonSchulzShape shape(m, n);
  const NewtonSchulzThread<Traits> me;
  DYNAMIC_SHARED(Element, shared);
  SHARED_ARRAY(float, lines, Traits::kMatrices* Traits::kWarps);
  const int size = shape.rows * Traits::kLd;
  Element* const matrix = shared + me.slot * backward_elements<Traits>(shape);
  Element* const adjoint = matrix + size;
  Element* const squares = adjoint + size;
  float* const line = lines + me.slot * Traits::kWarps;
  tape += (static_cast<int64_t>(blockIdx.x) * Traits::kMatrices + me.slot) *
          tape_elements<Traits>(shape, schedule.steps);

  for (int64_t group = blockIdx.x; group * Traits::kMatrices < batch; group += gridDim.x) {
    const int64_t index = group * Traits::kMatrices + me.slot;
    const bool valid = index < batch;
    const int64_t first = valid ? index * m * n : 0;
    clear_elements<Traits>(matrix, 2 * size, me.thread);
    __syncthreads();
    if (valid) {
      load_upright<Traits>(matrix, x + first, shape, me.thread);
      load_upright<Traits>(adjoint, grad + first, shape, me.thread);
    }
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    const MatrixNorm norm = measure<Traits>(matrix, size, eps, line, me);
    const MatrixNorm incoming = measure<Traits>(adjoint, size, 0.0f, line, me);
    scale_elements<Traits>(matrix, size, norm.power, norm.factor(), me.thread);
    scale_elements<Traits>(adjoint, size, incoming.power, 1.0f, me.thread);
    __syncthreads();
    for (int step = 0; step < schedule.steps; ++step) {
      copy_elements<Traits>(tape + static_cast<int64_t>(step) * size, matrix, size, me.thread);
      if (step + 1 == schedule.steps) break;
      square_product<Traits, true>(squares, matrix, matrix, shape.rows, me.warp, Keep());
      quadratic<Traits>(squares, squares, schedule, step, me.warp);
      multiply_rows<Traits>(matrix, squares, shape.rows, me.warp);
      __syncthreads();
    }
    for (int step = schedule.steps - 1; step >= 0; --step) {
      // A thread reads back what it wrote itself.
      copy_elements<Traits>(matrix, tape + static_cast<int64_t>(step) * size, size, me.thread);
      __syncthreads();
      step_backward<Traits>(adjoint, matrix, squares, shape.rows, schedule, step, me);
    }
    // Through X_0 = S power / whole, which is in `matrix` again.
    float inward = 0;
    for (int i = me.thread; i < size; i += me.kCount)
      inward += Tile::load(adjoint[i]) * Tile::load(matrix[i]);
    inward = warps_sum<Traits::kWarps>(inward, line, me.warp);
    if (norm.norm != 0) inward *= norm.whole * reciprocal(norm.norm);
    const float outer = scale * inverse_power(incoming.power);
    if (valid)
      each_element<Traits>(shape, me.thread, [&](int row, int column, int i) {
        const int at = Traits::at(row, column);
        const float through = Tile::load(adjoint[at]) - Tile::load(matrix[at]) * inward;
        grad_x[first + i] = from_float<T>(through * norm.factor() * norm.power * outer);
      });
    __syncthreads();
  }
}

}  // namespace atlas::kernels::cuda
