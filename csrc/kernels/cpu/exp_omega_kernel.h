// Sums over past keys with the kernel exp(scale k_j . x), and their adjoint: attention's two
// products, block of keys by block of keys (docs/math/exp_omega_rule.md, eqs. 13 to 17). Included
// by kernel bodies after isa_begin.h.
#pragma once
#include "kernels/cpu/activation.h"
#include "kernels/cpu/gemm.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

constexpr int64_t kKeyBlock = 64;

// e^x with the 0 and the infinity that exponential's clamps hide.
template <class T>
ATLAS_INLINE Vec<T> kernel_exp(Vec<T> x) {
  constexpr T lowest = sizeof(T) == 4 ? T(-87) : T(-708), highest = sizeof(T) == 4 ? T(88) : T(709);
  Vec<T> y = exponential(x);
  y = x < lowest ? Vec<T>{} : y;
  return x > highest ? splat(static_cast<T>(__builtin_inf())) : y;
}

// row [count] = exp(row - shift); what stands behind it up to a whole vector is overwritten.
template <class T>
ATLAS_INLINE void kernel_row(T* row, int64_t count, T shift) {
  for (int64_t i = 0; i < count; i += kWidth<T>)
    store(row + i, kernel_exp<T>(load(row + i) - shift));
}

template <class T>
ATLAS_INLINE T row_sum(const T* row, int64_t count) {
  Vec<T> sums{};
  int64_t i = 0;
  for (; i + kWidth<T> <= count; i += kWidth<T>) sums += load(row + i);
  T total = sum_lanes<T>(sums);
  for (; i < count; ++i) total += row[i];
  return total;
}

template <class T>
ATLAS_INLINE T row_most(const T* row, int64_t count) {
  T most = row[0];
  int64_t i = 0;
  if (count >= kWidth<T>) {
    Vec<T> lanes = load(row);
    for (i = kWidth<T>; i + kWidth<T> <= count; i += kWidth<T>) {
      const Vec<T> next = load(row + i);
      lanes = next > lanes ? next : lanes;
    }
    for (int64_t j = 0; j < kWidth<T>; ++j) most = lanes[j] > most ? lanes[j] : most;
  }
  for (; i < count; ++i) most = row[i] > most ? row[i] : most;
  return most;
}

// The keys of one head: as rows, and times scale and transposed, so that a product with a query is
// the exponent.
template <class T>
struct Keys {
  T* rows;        // [count, kp]
  T* transposed;  // [blocks, key, kKeyBlock]
  int64_t key, kp;
  T scale;

  T* block(int64_t first) const { return transposed + first / kKeyBlock * key * kKeyBlock; }
};

// dst [key, ld] = scale rows [count, kp] transposed
template <class T>
inline void transpose_scaled(T* dst, int64_t ld, const Keys<T>& keys, const T* rows,
                             int64_t count) {
  transpose(dst, ld, rows, keys.kp, count, keys.key);
  const int64_t width = padded<T>(count);
  for (int64_t d = 0; d < keys.key; ++d)
    for (int64_t j = 0; j < width; ++j) dst[d * ld + j] *= keys.scale;
}

template <class T>
inline void transpose_keys(const Keys<T>& keys, int64_t count) {
  for (int64_t first = 0; first < count; first += kKeyBlock)
    transpose_scaled(keys.block(first), kKeyBlock, keys, keys.rows + first * keys.kp,
                     smaller(kKeyBlock, count - first));
}

// Running maximum and sum of a normalised read, one for each query; null: not normalised.
template <class T>
struct Running {
  T *most = nullptr, *sum = nullptr;
};

// acc [n, width of ld] += sum over keys j < count of exp(scale k_j . x) rows_j. With `running`
// everything is relative to exp(most), and what was summed before is brought in line where the
// maximum grows.
template <class T>
inline void kernel_sums(T* acc, int64_t ld, int64_t width, const T* queries, int64_t n,
                        const Keys<T>& keys, const T* rows, int64_t rows_ld, int64_t count,
                        const Running<T>& running, T* kernel) {
  for (int64_t first = 0; first < count; first += kKeyBlock) {
    const int64_t block = smaller(kKeyBlock, count - first);
    gemm(n, block, keys.key, plain(queries, keys.kp), keys.block(first), kKeyBlock, kernel,
         kKeyBlock);
    for (int64_t t = 0; t < n; ++t) {
      T* row = kernel + t * kKeyBlock;
      if (running.most == nullptr) {
        kernel_row(row, block, T(0));
        continue;
      }
      T* most = running.most + t;
      const T found = row_most(row, block);
      if (found > *most) {
        const T factor = kernel_exp<T>(splat(*most - found))[0];
        running.sum[t] *= factor;
        for (int64_t j = 0; j < width; ++j) acc[t * ld + j] *= factor;
        *most = found;
      }
      kernel_row(row, block, *most);
      running.sum[t] += row_sum(row, block);
    }
    gemm(n, width, block, plain(kernel, kKeyBlock), rows + first * rows_ld, rows_ld, acc, ld, T(1),
         T(1));
  }
}

// The adjoint of kernel_sums, z_t = m_t sum_j E_tj b_j - s_t sum_j E_tj S_j with E possibly divided
// by its sum (then `shift` is the log of that sum, `centre` is grad_t . z_t).
template <class T>
struct KernelGrads {
  const T* queries;  // [n, kp]
  int64_t n;
  const T *shift, *centre;  // [n]; null: 0
  const T* grad;            // [n, wide]
  const T* scaled;          // [n, scaled_width] m grad, and -s grad behind it
  int64_t wide, scaled_width;
  const T *m, *s;       // [n]; null: 1, and no S
  T* grad_queries;      // [n, kp] added to; null: not wanted
  T *grad_m, *grad_s;   // [n] added to; null where m, s are
  T *kernel, *by, *bs;  // scratch, each [n, kKeyBlock]
  T* rows;              // scratch, [wide, kKeyBlock]
};

// From d loss / d E, which stands in `by` without its factors, to that of the exponents.
template <class T>
ATLAS_INLINE void kernel_slopes(const KernelGrads<T>& g, int64_t t, const T* kernel, T* by,
                                const T* bs, int64_t count, T scale) {
  const T m = g.m == nullptr ? T(1) : g.m[t], centre = g.centre == nullptr ? T(0) : g.centre[t];
  if (g.grad_m != nullptr) g.grad_m[t] += dot(kernel, by, count);
  if (bs == nullptr) {
    for (int64_t i = 0; i < count; ++i) by[i] = scale * kernel[i] * (m * by[i] - centre);
    return;
  }
  g.grad_s[t] -= dot(kernel, bs, count);
  const T s = g.s[t];
  for (int64_t i = 0; i < count; ++i) by[i] = scale * kernel[i] * (m * by[i] - s * bs[i] - centre);
}

// Adds to grad_rows [count, scaled_width of grad_ld] and, if wanted, to grad_keys [count, kp].
template <class T>
inline void kernel_sums_backward(const KernelGrads<T>& g, const Keys<T>& keys, const T* rows,
                                 int64_t rows_ld, int64_t count, T* grad_rows, int64_t grad_ld,
                                 T* grad_keys) {
  constexpr int64_t ld = kKeyBlock;
  for (int64_t first = 0; first < count; first += ld) {
    const int64_t block = smaller(ld, count - first);
    gemm(g.n, block, keys.key, plain(g.queries, keys.kp), keys.block(first), ld, g.kernel, ld);
    for (int64_t t = 0; t < g.n; ++t)
      kernel_row(g.kernel + t * ld, block, g.shift == nullptr ? T(0) : g.shift[t]);
    transpose(g.rows, ld, rows + first * rows_ld, rows_ld, block, g.wide);
    gemm(g.n, block, g.wide, plain(g.grad, g.wide), g.rows, ld, g.by, ld);
    if (g.s != nullptr) {
      transpose(g.rows, ld, rows + first * rows_ld + g.wide, rows_ld, block, g.wide);
      gemm(g.n, block, g.wide, plain(g.grad, g.wide), g.rows, ld, g.bs, ld);
    }
    gemm(block, g.scaled_width, g.n, transposed(g.kernel, ld), g.scaled, g.scaled_width,
         grad_rows + first * grad_ld, grad_ld, T(1), T(1));
    for (int64_t t = 0; t < g.n; ++t)
      kernel_slopes(g, t, g.kernel + t * ld, g.by + t * ld,
                    g.s == nullptr ? nullptr : g.bs + t * ld, block, keys.scale);
    if (g.grad_queries != nullptr)
      gemm(g.n, keys.key, block, plain(g.by, ld), keys.rows + first * keys.kp, keys.kp,
           g.grad_queries, keys.kp, T(1), T(1));
    if (grad_keys != nullptr)
      gemm(block, keys.key, g.n, transposed(g.by, ld), g.queries, keys.kp,
           grad_keys + first * keys.kp, keys.kp, T(1), T(1));
  }
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
