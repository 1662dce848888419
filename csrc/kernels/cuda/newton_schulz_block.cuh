#pragma once
// What the forward and the backward of Newton-Schulz share: a matrix in shared memory, and the
// steps on it (spec section 4, docs/math/newton_schulz.md).
//
// A matrix S [m, n] is held upright, X [longer, shorter], whatever its shape; both sides are padded
// with zeros, the shorter one to kSize. kSize / 16 warps work on it, each on 16 rows of a square
// product and on every (kSize / 16)-th 16 rows of X. Small matrices share a block. Products are
// made in registers and written after a barrier, so that most of them are in place.
#include "kernels/cuda/newton_schulz.h"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/tile.cuh"
#include "kernels/cuda/vec.cuh"

namespace atlas::kernels::cuda {

template <class Tile_, int kSize_>
struct NewtonSchulzTraits {
  using Tile = Tile_;
  using Element = typename Tile::Element;
  static constexpr int kSize = kSize_;
  static constexpr int kWarps = kSize / 16;  // of one matrix
  static constexpr int kMatrices = kSize >= 64 ? 1 : 64 / kSize;
  static constexpr int kThreads = kMatrices * kWarps * kWarp;
  static constexpr int kLd = kSize + Tile::kPad;
  static constexpr int kSquare = kSize * kLd;  // elements
  static_assert(kSize % 16 == 0 && kThreads <= 256, "whole tiles, a block of at most 8 warps");
  using Rows = typename Tile::template Rows<kSize>;

  __device__ static __forceinline__ int at(int row, int column) {
    return Tile::at(row, column, kLd);
  }
};

// The sizes of a problem, alike for all matrices of the batch.
struct NewtonSchulzShape {
  int m, n, longer, shorter;
  int rows;  // longer, padded

  __host__ __device__ constexpr NewtonSchulzShape(int m, int n)
      : m(m), n(n), longer(m < n ? n : m), shorter(m < n ? m : n), rows((longer + 15) / 16 * 16) {}

  __host__ __device__ constexpr bool transposed() const { return m < n; }
  __host__ __device__ constexpr bool elongated() const { return longer >= 2 * shorter; }
};

// Who a thread is: its matrix of the block, its warp and its place among that matrix's threads.
template <class Traits>
struct NewtonSchulzThread {
  int slot, warp, thread;

  __device__ __forceinline__ NewtonSchulzThread()
      : slot(static_cast<int>(threadIdx.x) / (Traits::kWarps * kWarp)),
        warp(static_cast<int>(threadIdx.x) / kWarp % Traits::kWarps),
        thread(static_cast<int>(threadIdx.x) % (Traits::kWarps * kWarp)) {}
  static constexpr int kCount = Traits::kWarps * kWarp;
};

__device__ __forceinline__ float schedule_entry(const NewtonSchulzSchedule& schedule, int step,
                                                int column) {
  if (schedule.table != nullptr) return schedule.table[3 * step + column];
  return schedule.row[step < schedule.rows ? step : schedule.rows - 1][column];
}

// One past the last step of the stretch that begins at `begin`: on an elongated matrix X is touched
// only at a stretch's end, while the round-off of its Gram matrix has grown by less than 256.
__device__ __forceinline__ int stretch_end(const NewtonSchulzSchedule& schedule, bool elongated,
                                           int begin) {
  int end = begin + 1;
  if (!elongated) return end;
  for (float growth = 1; end < schedule.steps; ++end) {
    const float a = schedule_entry(schedule, end - 1, 0);
    growth *= a * a;
    if (!(growth <= 256.0f)) break;
  }
  return end;
}

// Calls use(row, column, index) for the elements of one matrix in memory order, row and column
// upright.
template <class Traits, class Use>
__device__ __forceinline__ void each_element(const NewtonSchulzShape& shape, int thread,
                                             const Use& use) {
  const int count = shape.m * shape.n;
  for (int i = thread; i < count; i += NewtonSchulzThread<Traits>::kCount) {
    const int row = i / shape.n, column = i % shape.n;
    if (shape.transposed())
      use(column, row, i);
    else
      use(row, column, i);
  }
}

template <class Traits>
__device__ __forceinline__ void clear_elements(typename Traits::Element* x, int count, int thread) {
  for (int i = thread; i < count; i += NewtonSchulzThread<Traits>::kCount)
    x[i] = Traits::Tile::store(0.0f);
}

// ||S||_F = norm / power, with power a power of two that keeps the squares in range; whole is what
// S * power is divided by, and 1 / whole is 0 for a matrix of zeros.
struct MatrixNorm {
  float power, norm, whole;

  __device__ __forceinline__ float factor() const { return norm == 0 ? 0.0f : reciprocal(whole); }
};

__device__ __forceinline__ float power_below(float largest) {
  int exponent = static_cast<int>(float_to_bits(largest) >> 23 & 255u) - 126;
  exponent = exponent > 120 ? 120 : exponent < -120 ? -120 : exponent;
  return bits_to_float(static_cast<uint32_t>(127 - exponent) << 23);
}

// 1 / 2^e, exactly.
__device__ __forceinline__ float inverse_power(float power) {
  return bits_to_float((254u << 23) - float_to_bits(power));
}

// Measures x, `count` elements of shared memory. All threads of the block.
template <class Traits>
__device__ __forceinline__ MatrixNorm measure(const typename Traits::Element* x, int count,
                                              float eps, float* line,
                                              const NewtonSchulzThread<Traits>& me) {
  float largest = 0;
  for (int i = me.thread; i < count; i += me.kCount) {
    const float value = Traits::Tile::load(x[i]), size = value < 0 ? -value : value;
    largest = size > largest ? size : largest;
  }
  largest = warps_max<Traits::kWarps>(largest, line, me.warp);
  MatrixNorm result;
  result.power = power_below(largest);
  float sum = 0;
  for (int i = me.thread; i < count; i += me.kCount) {
    const float value = Traits::Tile::load(x[i]) * result.power;
    sum += value * value;
  }
  result.norm = square_root(warps_sum<Traits::kWarps>(sum, line, me.warp));
  result.whole = result.norm + eps * result.power;
  return result;
}

// x <- x * first * second, factors one by one: their product may be out of range.
template <class Traits>
__device__ __forceinline__ void scale_elements(typename Traits::Element* x, int count, float first,
                                               float second, int thread) {
  for (int i = thread; i < count; i += NewtonSchulzThread<Traits>::kCount)
    x[i] = Traits::Tile::store(Traits::Tile::load(x[i]) * first * second);
}

// x [rows, kLd], already cleared, = the upright copy of a matrix in device memory, not yet there
// before the next cp_async_wait and barrier. Rows that can go as they are go asynchronously.
template <class Traits, class T>
__device__ __forceinline__ void load_upright(typename Traits::Element* x, const T* source,
                                             const NewtonSchulzShape& shape, int thread) {
  constexpr int kWidth = kPackWidth<T>;
  if constexpr (std::is_same_v<T, typename Traits::Element>) {
    const bool aligned = reinterpret_cast<uintptr_t>(source) % 16 == 0 && shape.n % kWidth == 0;
    if (aligned && !shape.transposed()) {
      const int pieces = shape.n / kWidth;
      for (int i = thread; i < shape.m * pieces; i += NewtonSchulzThread<Traits>::kCount) {
        const int row = i / pieces, column = i % pieces * kWidth;
        cp_async16(x + Traits::at(row, column), source + row * shape.n + column);
      }
      return;
    }
  }
  each_element<Traits>(shape, thread, [&](int row, int column, int i) {
    x[Traits::at(row, column)] = Traits::Tile::store(to_float(source[i]));
  });
}

// target [kSize, kLd] = the warps' rows; map(v0, v1, row, column) changes two neighbours on the
// way.
template <class Traits, class Map>
__device__ __forceinline__ void write_rows(typename Traits::Element* target,
                                           typename Traits::Rows& rows, int first, const Map& map) {
  rows.visit([&](int row, int column, float& v0, float& v1) {
    map(v0, v1, first + row, column);
    Traits::Tile::store2(target + Traits::at(first + row, column), v0, v1);
  });
}

// target = op(A) B, all square or with `depth` rows under the transposition. Barriers on both sides
// of the writing: target may be A or B.
template <class Traits, bool kTransposed, class Map>
__device__ __forceinline__ void square_product(typename Traits::Element* target,
                                               const typename Traits::Element* a,
                                               const typename Traits::Element* b, int depth,
                                               int warp, const Map& map) {
  typename Traits::Rows rows;
  rows.clear();
  Traits::Tile::template multiply<kTransposed, Traits::kSize>(rows, a, Traits::kLd, 16 * warp, b,
                                                              Traits::kLd, depth);
  __syncthreads();
  write_rows<Traits>(target, rows, 16 * warp, map);
  __syncthreads();
}

struct Keep {
  __device__ __forceinline__ void operator()(float&, float&, int, int) const {}
};

// Z = a I + b A + c A² in place of A, or beside it.
template <class Traits>
__device__ __forceinline__ void quadratic(typename Traits::Element* z,
                                          const typename Traits::Element* gram,
                                          const NewtonSchulzSchedule& schedule, int step,
                                          int warp) {
  const float a = schedule_entry(schedule, step, 0), b = schedule_entry(schedule, step, 1),
              c = schedule_entry(schedule, step, 2);
  square_product<Traits, false>(
      z, gram, gram, Traits::kSize, warp, [&](float& v0, float& v1, int row, int column) {
        float entry0, entry1;
        Traits::Tile::load2(gram + Traits::at(row, column), entry0, entry1);
        v0 = c * v0 + b * entry0 + (row == column ? a : 0.0f);
        v1 = c * v1 + b * entry1 + (row == column + 1 ? a : 0.0f);
      });
}

// X <- X Q, 16 rows at a time: nobody else reads a warp's rows.
template <class Traits>
__device__ __forceinline__ void multiply_rows(typename Traits::Element* x,
                                              const typename Traits::Element* q, int rows,
                                              int warp) {
  for (int first = 16 * warp; first < rows; first += 16 * Traits::kWarps) {
    typename Traits::Rows sums;
    sums.clear();
    Traits::Tile::template multiply<false, Traits::kSize>(sums, x, Traits::kLd, first, q,
                                                          Traits::kLd, Traits::kSize);
    sync_warp();
    write_rows<Traits>(x, sums, first, Keep());
    sync_warp();
  }
}

}  // namespace atlas::kernels::cuda
