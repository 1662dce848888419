#pragma once
// What a whole block does together on matrices of floats that lie anywhere, in shared or device
// memory: loops over elements and one matrix product. `product` ends with a barrier, so its result
// may be read; the loops do not.
#include <type_traits>

#include "kernels/cuda/reduce.cuh"

namespace atlas::kernels::cuda {

// Element (i, j) of a matrix is at[i * row + j * column].
struct View {
  const float* at;
  int row, column;
};

__host__ __device__ __forceinline__ View plain(const float* at, int ld) { return {at, ld, 1}; }
__host__ __device__ __forceinline__ View transposed(const float* at, int ld) { return {at, 1, ld}; }

__device__ __forceinline__ int block_threads() { return static_cast<int>(blockDim.x); }
__device__ __forceinline__ int thread_id() { return static_cast<int>(threadIdx.x); }

// use(i) for i < count.
template <class Use>
__device__ __forceinline__ void each(int count, const Use& use) {
  for (int i = thread_id(); i < count; i += block_threads()) use(i);
}

// use(i, j) for i < rows, j < columns; neighbouring threads have neighbouring j.
template <class Use>
__device__ __forceinline__ void each(int rows, int columns, const Use& use) {
  const unsigned width = static_cast<unsigned>(columns), threads = blockDim.x;
  const int down = static_cast<int>(threads / width), right = static_cast<int>(threads % width);
  int i = static_cast<int>(threadIdx.x / width), j = static_cast<int>(threadIdx.x % width);
  while (i < rows) {
    use(i, j);
    i += down;
    j += right;
    if (j >= columns) {
      j -= columns;
      ++i;
    }
  }
}

// The sum over the block, in a fixed order, for all threads; `line` has a float for each warp.
__device__ __forceinline__ float block_sum(float value, float* line) {
  value = group_sum(value);
  __syncthreads();  // an earlier sum's readers are done
  if (lane_id() == 0) line[thread_id() / kWarp] = value;
  __syncthreads();
  float total = 0;
  for (int i = 0; i < block_threads() / kWarp; ++i) total += line[i];
  return total;
}

__device__ __forceinline__ float block_max(float value, float* line) {
  value = group_max(value);
  __syncthreads();
  if (lane_id() == 0) line[thread_id() / kWarp] = value;
  __syncthreads();
  float most = line[0];
  for (int i = 1; i < block_threads() / kWarp; ++i) most = line[i] > most ? line[i] : most;
  return most;
}

// How products multiply: floats as they are; rounded to tf32 on tensor cores; or there, too, but as
// a tf32 and the tf32 of what is left (three products, nearly as exact as floats).
enum class Arithmetic { simple, tf32, split_tf32 };

template <Arithmetic kArithmetic>
constexpr int kArithmeticCapability = kArithmetic == Arithmetic::simple ? 75 : 80;

// A warp's 16 x 32 or 32 x 32 results of a product.
constexpr int kTileRows = 16, kTileColumns = 32;

// Which neighbours in memory a view has: elements of a row, of a column, or neither. Known strides
// of one save an instruction a load.
enum class Unit { column, row, none };

template <Unit kUnit>
__device__ __forceinline__ int row_stride(const View& view) {
  return kUnit == Unit::row ? 1 : view.row;
}
template <Unit kUnit>
__device__ __forceinline__ int column_stride(const View& view) {
  return kUnit == Unit::column ? 1 : view.column;
}

// One operand's lanes: element 0 of `kCount` lines kStep apart, each going on along the depth.
// kInside: all lines are in the matrix, else those beyond it point to its last one (their results
// are not stored).
template <int kCount, int kStep, bool kInside>
struct ProductLines {
  const float* first[kInside ? 1 : kCount];
  int line_stride, depth_stride;

  // `line`: the lane's first one; `depth`: its first element of it; `count`: lines of the matrix.
  __device__ __forceinline__ ProductLines(const float* at, int line_stride, int depth_stride,
                                          int line, int depth, int count)
      : line_stride(line_stride), depth_stride(depth_stride) {
#pragma unroll
    for (int i = 0; i < (kInside ? 1 : kCount); ++i)
      first[i] = at + (kInside ? line : min(line + kStep * i, count - 1)) * line_stride +
                 depth * depth_stride;
  }

  __device__ __forceinline__ float at(int line, int depth) const {
    return kInside ? first[0][line * kStep * line_stride + depth * depth_stride]
                   : first[line][depth * depth_stride];
  }

  __device__ __forceinline__ void advance(int depth) {
#pragma unroll
    for (int i = 0; i < (kInside ? 1 : kCount); ++i) first[i] += depth * depth_stride;
  }
};

// One warp's tile as tensor cores hold it: kBands times four m16n8 results.
template <bool kSplit, int kBands, Unit kA, Unit kB, bool kInside>
struct Tf32ProductTile {
  static constexpr int kDepth = 8, kUnroll = 1;
  float sums[kBands][4][4] = {};
  ProductLines<2 * kBands, 8, kInside> a;
  ProductLines<4, 8, kInside> b;

  __device__ __forceinline__ Tf32ProductTile(const View& a_view, const View& b_view, int first_row,
                                             int first_column, int m, int n)
      : a(a_view.at, row_stride<kA>(a_view), column_stride<kA>(a_view), first_row + lane_id() / 4,
          lane_id() % 4, m),
        b(b_view.at, column_stride<kB>(b_view), row_stride<kB>(b_view),
          first_column + lane_id() / 4, lane_id() % 4, n) {}

  // The next eight of depth, from k on; those from `depth` on count as zero.
  template <bool kWhole>
  __device__ __forceinline__ void step(const float* factor, int k, int depth) {
    float left[kBands][4] = {}, right[4][2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int at = k + lane_id() % 4 + 4 * half;
      if (!kWhole && at >= depth) continue;
      const float by = factor != nullptr ? factor[at] : 1.0f;
#pragma unroll
      for (int i = 0; i < 2 * kBands; ++i) left[i / 2][2 * half + i % 2] = a.at(i, 4 * half);
#pragma unroll
      for (int j = 0; j < 4; ++j) right[j][half] = b.at(j, 4 * half) * by;
    }
    a.advance(8);
    b.advance(8);
    uint32_t high[kBands][4], low[kBands][4];
#pragma unroll
    for (int band = 0; band < kBands; ++band) split(high[band], low[band], left[band]);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      uint32_t b_high[2], b_low[2];
      split(b_high, b_low, right[j]);
#pragma unroll
      for (int band = 0; band < kBands; ++band) {
        if constexpr (kSplit) {
          mma_tf32_16x8x8(sums[band][j], low[band], b_high);
          mma_tf32_16x8x8(sums[band][j], high[band], b_low);
        }
        mma_tf32_16x8x8(sums[band][j], high[band], b_high);
      }
    }
  }

  template <int kCount>
  __device__ static __forceinline__ void split(uint32_t (&high)[kCount], uint32_t (&low)[kCount],
                                               const float (&x)[kCount]) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      high[i] = to_tf32(x[i]);
      if constexpr (kSplit) low[i] = to_tf32(x[i] - bits_to_float(high[i]));
    }
  }

  template <class Use>
  __device__ __forceinline__ void visit(const Use& use) {
#pragma unroll
    for (int band = 0; band < kBands; ++band)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          use(lane_id() / 4 + 16 * band + i / 2 * 8, 8 * j + lane_id() % 4 * 2 + i % 2,
              sums[band][j][i]);
  }
};

// A lane has four rows four apart, and of the 32 columns four eight apart.
template <Unit kA, Unit kB, bool kInside>
struct SimpleProductTile {
  static constexpr int kDepth = 1, kUnroll = 2;
  float sums[4][4] = {};
  ProductLines<4, 4, kInside> a;
  ProductLines<4, 8, kInside> b;

  __device__ __forceinline__ SimpleProductTile(const View& a_view, const View& b_view,
                                               int first_row, int first_column, int m, int n)
      : a(a_view.at, row_stride<kA>(a_view), column_stride<kA>(a_view), first_row + lane_id() / 8,
          0, m),
        b(b_view.at, column_stride<kB>(b_view), row_stride<kB>(b_view),
          first_column + lane_id() % 8, 0, n) {}

  template <bool kWhole>
  __device__ __forceinline__ void step(const float* factor, int k, int) {
    float left[4];
    const float by = factor != nullptr ? factor[k] : 1.0f;
#pragma unroll
    for (int i = 0; i < 4; ++i) left[i] = a.at(i, 0) * by;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float right = b.at(j, 0);
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[i][j] += left[i] * right;
    }
    a.advance(1);
    b.advance(1);
  }

  template <class Use>
  __device__ __forceinline__ void visit(const Use& use) {
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) use(lane_id() / 8 + 4 * i, lane_id() % 8 + 8 * j, sums[i][j]);
  }
};

template <Arithmetic kArithmetic, int kBands, Unit kA, Unit kB, bool kInside>
using ProductTile = std::conditional_t<
    kArithmetic == Arithmetic::simple, SimpleProductTile<kA, kB, kInside>,
    Tf32ProductTile<kArithmetic == Arithmetic::split_tf32, kBands, kA, kB, kInside>>;

// Operands and result of a product, as block_product has them.
struct ProductTask {
  View a, b;
  const float *depth_factor, *row_factor;
  float* c;
  int ld, m, n, depth;
  float alpha, beta;
};

template <class Tile, bool kInside>
__device__ __forceinline__ void product_tile(const ProductTask& task, int first_row,
                                             int first_column) {
  Tile tile(task.a, task.b, first_row, first_column, task.m, task.n);
  int k = 0;
#pragma unroll Tile::kUnroll
  for (; k + Tile::kDepth <= task.depth; k += Tile::kDepth)
    tile.template step<true>(task.depth_factor, k, task.depth);
  if (k < task.depth) tile.template step<false>(task.depth_factor, k, task.depth);
  tile.visit([&](int i, int j, float sum) {
    i += first_row;
    j += first_column;
    if (!kInside && (i >= task.m || j >= task.n)) return;
    float* const at = task.c + i * task.ld + j;
    float value = task.alpha * sum;
    if (task.row_factor != nullptr) value *= task.row_factor[i];
    if (task.beta != 0) value += task.beta * *at;
    *at = value;
  });
}

// Tiles of kBands * 16 rows, dealt to the warps in turn. Those inside the matrix know the operands'
// unit strides, for the layouts that matter; all others have one copy of the code.
template <Arithmetic kArithmetic, int kBands>
__device__ __forceinline__ void product_tiles(const ProductTask& task) {
  constexpr int kRows = kBands * kTileRows;
  constexpr Unit kColumn = Unit::column, kRow = Unit::row, kNone = Unit::none;
  const bool a_rows = task.a.column == 1, b_rows = task.b.column == 1, b_columns = task.b.row == 1;
  const bool known = b_rows || (a_rows && b_columns);
  const unsigned across = static_cast<unsigned>(task.n + kTileColumns - 1) / kTileColumns,
                 down = static_cast<unsigned>(task.m + kRows - 1) / kRows;
  for (unsigned tile = threadIdx.x / kWarp; tile < across * down; tile += blockDim.x / kWarp) {
    const int row = static_cast<int>(tile / across) * kRows,
              column = static_cast<int>(tile % across) * kTileColumns;
    if (!known || row + kRows > task.m || column + kTileColumns > task.n)
      product_tile<ProductTile<kArithmetic, kBands, kNone, kNone, false>, false>(task, row, column);
    else if (!a_rows)
      product_tile<ProductTile<kArithmetic, kBands, kRow, kColumn, true>, true>(task, row, column);
    else if (b_rows)
      product_tile<ProductTile<kArithmetic, kBands, kColumn, kColumn, true>, true>(task, row,
                                                                                   column);
    else
      product_tile<ProductTile<kArithmetic, kBands, kColumn, kRow, true>, true>(task, row, column);
  }
}

// Whether tiles of two bands finish sooner: one takes 5/4 of the instructions of a tile of one
// band.
__host__ __device__ __forceinline__ bool two_bands_pay(int m, int n, int warps) {
  const unsigned across = static_cast<unsigned>(n + kTileColumns - 1) / kTileColumns,
                 w = static_cast<unsigned>(warps),
                 one = (static_cast<unsigned>(m + kTileRows - 1) / kTileRows * across + w - 1) / w,
                 two = (static_cast<unsigned>(m + 2 * kTileRows - 1) / (2 * kTileRows) * across +
                        w - 1) /
                       w;
  return 5 * two < 4 * one;
}

// c [m, n] = beta c + alpha row_factor_i sum_k a_ik depth_factor_k b_kj; a factor that is null is
// 1, and with beta = 0 c is not read. c is none of the operands, and a has a stride of one.
template <Arithmetic kArithmetic>
__device__ ATLAS_SHARED_CODE void block_product(View a, View b, const float* depth_factor,
                                                const float* row_factor, float* c, int ld, int m,
                                                int n, int depth, float alpha, float beta) {
  const ProductTask task{a, b, depth_factor, row_factor, c, ld, m, n, depth, alpha, beta};
  // Two bands of split operands would not fit in registers.
  if (kArithmetic == Arithmetic::tf32 && two_bands_pay(m, n, block_threads() / kWarp))
    product_tiles<kArithmetic, kArithmetic == Arithmetic::tf32 ? 2 : 1>(task);
  else
    product_tiles<kArithmetic, 1>(task);
  __syncthreads();
}

// Options of a product beside its operands.
struct Scaling {
  float alpha = 1, beta = 0;
  const float* depth = nullptr;  // factors along the depth
  const float* row = nullptr;    // factors of the result's rows
};

template <Arithmetic kArithmetic>
__device__ __forceinline__ void product(float* c, int ld, int m, int n, int depth, const View& a,
                                        const View& b, const Scaling& scaling = Scaling()) {
  block_product<kArithmetic>(a, b, scaling.depth, scaling.row, c, ld, m, n, depth, scaling.alpha,
                             scaling.beta);
}

}  // namespace atlas::kernels::cuda
