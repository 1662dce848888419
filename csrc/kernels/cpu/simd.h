// Vectors, dtype conversion and row loads for one instruction set; included by kernel bodies after
// isa_begin.h.
#pragma once
#include "kernels/cpu/array.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

#define ATLAS_INLINE inline __attribute__((always_inline))

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(ATLAS_VECTOR_BYTES)));
  typedef float unaligned __attribute__((vector_size(ATLAS_VECTOR_BYTES), aligned(4), may_alias));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(ATLAS_VECTOR_BYTES)));
  typedef double unaligned __attribute__((vector_size(ATLAS_VECTOR_BYTES), aligned(8), may_alias));
};

template <class T>
using Vec = typename VecOf<T>::type;

// Elements of one vector.
template <class T>
constexpr int64_t kWidth = ATLAS_VECTOR_BYTES / static_cast<int64_t>(sizeof(T));

template <class T>
ATLAS_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}

template <class T>
ATLAS_INLINE void store(T* p, Vec<T> x) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = x;
}

// x - 0 is x for every x, which the compiler knows: one broadcast, from memory where x is there. (0
// + x is not: -0.)
template <class T>
ATLAS_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}

template <int... I>
struct Lanes {};
template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
  using type = Lanes<I...>;
};

template <class T, int kStep, int... I>
ATLAS_INLINE Vec<T> fold_lanes(Vec<T> x, Lanes<I...> lanes) {
  x += __builtin_shufflevector(x, x, (I ^ kStep)...);
  if constexpr (kStep > 1)
    return fold_lanes<T, kStep / 2>(x, lanes);
  else
    return x;
}

// Sum of the lanes, pairwise: the order is fixed.
template <class T>
ATLAS_INLINE T sum_lanes(Vec<T> x) {
  constexpr int n = static_cast<int>(kWidth<T>);
  return fold_lanes<T, n / 2>(x, typename MakeLanes<n>::type())[0];
}

ATLAS_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
ATLAS_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// `n` rounded up to whole vectors: the leading dimension of all scratch matrices, whose padding is
// zero.
template <class T>
ATLAS_INLINE int64_t padded(int64_t n) {
  return (n + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
}

template <class T>
ATLAS_INLINE T dot(const T* a, const T* b, int64_t n) {
  Vec<T> acc0{}, acc1{};
  int64_t i = 0;
  for (; i + 2 * kWidth<T> <= n; i += 2 * kWidth<T>) {
    acc0 += load(a + i) * load(b + i);
    acc1 += load(a + i + kWidth<T>) * load(b + i + kWidth<T>);
  }
  for (; i + kWidth<T> <= n; i += kWidth<T>) acc0 += load(a + i) * load(b + i);
  T total = sum_lanes<T>(acc0 + acc1);
  for (; i < n; ++i) total += a[i] * b[i];
  return total;
}

// y = scale * y + a * x
template <class T>
ATLAS_INLINE void scale_add(T* y, T scale, T a, const T* x, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth<T> <= n; i += kWidth<T>) store(y + i, load(y + i) * scale + load(x + i) * a);
  for (; i < n; ++i) y[i] = y[i] * scale + a * x[i];
}

// y += a * x
template <class T>
ATLAS_INLINE void axpy(T* y, T a, const T* x, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth<T> <= n; i += kWidth<T>) store(y + i, load(y + i) + load(x + i) * a);
  for (; i < n; ++i) y[i] += a * x[i];
}

template <class T>
ATLAS_INLINE void fill_zero(T* p, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = T(0);
}

// ---- dtype conversion: bit arithmetic that the compiler vectorises; own code, because a library's
// inline function would
// ---- be shared between instruction sets.

ATLAS_INLINE float bits_to_float(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, 4);
  return x;
}

ATLAS_INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  return bits;
}

ATLAS_INLINE float bf16_to_float(uint16_t h) {
  return bits_to_float(static_cast<uint32_t>(h) << 16);
}

// Round to nearest even; NaN stays NaN.
ATLAS_INLINE uint16_t float_to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// The exponent is rebased by a multiplication, which is exact for normal, subnormal and infinite
// values.
ATLAS_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fffu) << 13;
  const uint32_t special = (h & 0x7c00u) == 0x7c00u ? 0x7f800000u : 0u;
  const float scaled = bits_to_float(magnitude) * 0x1p112f;
  return bits_to_float(float_to_bits(scaled) | special | sign);
}

ATLAS_INLINE uint16_t float_to_half(float x) {
  const uint32_t bits = float_to_bits(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t rebased = magnitude - 0x38000000u;
  const uint32_t normal = (rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13;
  // Adding 0.5 lines the subnormal's bits up at the end of the mantissa, rounded by the addition
  // itself.
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return static_cast<uint16_t>(half | sign);
}

template <class T, class S, class Convert>
ATLAS_INLINE void convert_in(T* __restrict dst, const S* __restrict src, int64_t n, int64_t stride,
                             Convert convert) {
  if (stride == 1) {
    for (int64_t i = 0; i < n; ++i) dst[i] = convert(src[i]);
  } else {
    for (int64_t i = 0; i < n; ++i) dst[i] = convert(src[i * stride]);
  }
}

// dst[i] = src[offset + i * stride], i < n, converted to T.
template <class T>
inline void load_array(T* dst, const Array& src, int64_t offset, int64_t n, int64_t stride) {
  switch (src.dtype) {
    case Dtype::f32:
      return convert_in(dst, static_cast<const float*>(src.data) + offset, n, stride,
                        [](float x) { return static_cast<T>(x); });
    case Dtype::f64:
      return convert_in(dst, static_cast<const double*>(src.data) + offset, n, stride,
                        [](double x) { return static_cast<T>(x); });
    case Dtype::bf16:
      return convert_in(dst, static_cast<const uint16_t*>(src.data) + offset, n, stride,
                        [](uint16_t x) { return static_cast<T>(bf16_to_float(x)); });
    case Dtype::f16:
      return convert_in(dst, static_cast<const uint16_t*>(src.data) + offset, n, stride,
                        [](uint16_t x) { return static_cast<T>(half_to_float(x)); });
  }
}

// dst[offset + i] = src[i], i < n, converted to the array's dtype; rows of outputs are contiguous.
template <class T>
inline void store_array(const MutableArray& dst, int64_t offset, const T* src, int64_t n) {
  switch (dst.dtype) {
    case Dtype::f32: {
      float* out = static_cast<float*>(dst.data) + offset;
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(src[i]);
      return;
    }
    case Dtype::f64: {
      double* out = static_cast<double*>(dst.data) + offset;
      for (int64_t i = 0; i < n; ++i) out[i] = static_cast<double>(src[i]);
      return;
    }
    case Dtype::bf16: {
      uint16_t* out = static_cast<uint16_t*>(dst.data) + offset;
      for (int64_t i = 0; i < n; ++i) out[i] = float_to_bf16(static_cast<float>(src[i]));
      return;
    }
    case Dtype::f16: {
      uint16_t* out = static_cast<uint16_t*>(dst.data) + offset;
      for (int64_t i = 0; i < n; ++i) out[i] = float_to_half(static_cast<float>(src[i]));
      return;
    }
  }
}

// ---- transposition

// One butterfly of a register transposition: swaps the off-diagonal kStep x kStep blocks of the
// rows a (upper), b (lower).
template <class T, int kStep, int... I>
ATLAS_INLINE void butterfly(Vec<T>& a, Vec<T>& b, Lanes<I...>) {
  constexpr int n = sizeof...(I);
  const Vec<T> upper = __builtin_shufflevector(a, b, ((I & kStep) ? n + I - kStep : I)...);
  const Vec<T> lower = __builtin_shufflevector(a, b, ((I & kStep) ? n + I : I + kStep)...);
  a = upper;
  b = lower;
}

template <class T, int kStep>
ATLAS_INLINE void transpose_steps(Vec<T>* rows) {
  if constexpr (kStep > 0) {
    constexpr int n = static_cast<int>(kWidth<T>);
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i)
      if (!(i & kStep))
        butterfly<T, kStep>(rows[i], rows[i + kStep], typename MakeLanes<n>::type());
    transpose_steps<T, kStep / 2>(rows);
  }
}

// dst[j][i] = src[i][j] for one block of kWidth x kWidth.
template <class T>
ATLAS_INLINE void transpose_block(T* dst, int64_t ldd, const T* src, int64_t lds) {
  constexpr int n = static_cast<int>(kWidth<T>);
  Vec<T> rows[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) rows[i] = load(src + i * lds);
  transpose_steps<T, n / 2>(rows);
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) store(dst + i * ldd, rows[i]);
}

// dst [cols, padded(rows)] = src [rows, cols] transposed; the padding of dst's rows is zero.
template <class T>
inline void transpose(T* dst, int64_t ldd, const T* src, int64_t lds, int64_t rows, int64_t cols) {
  constexpr int64_t w = kWidth<T>;
  const int64_t whole_rows = rows / w * w, whole_cols = cols / w * w;
  for (int64_t i = 0; i < whole_rows; i += w) {
    for (int64_t j = 0; j < whole_cols; j += w)
      transpose_block(dst + j * ldd + i, ldd, src + i * lds + j, lds);
    for (int64_t j = whole_cols; j < cols; ++j)
      for (int64_t r = i; r < i + w; ++r) dst[j * ldd + r] = src[r * lds + j];
  }
  if (whole_rows == rows) return;
  for (int64_t j = 0; j < cols; ++j) {
    for (int64_t r = whole_rows; r < rows; ++r) dst[j * ldd + r] = src[r * lds + j];
    for (int64_t r = rows; r < whole_rows + w; ++r) dst[j * ldd + r] = T(0);
  }
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
