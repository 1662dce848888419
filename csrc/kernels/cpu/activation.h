// The activations of deep memories and their first two derivatives, vector by vector
// (docs/math/omega_rule.md, section 7); included by kernel bodies after isa_begin.h.
#pragma once
#include "kernels/cpu/omega_rule.h"
#include "kernels/cpu/simd.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

typedef int32_t IntVec __attribute__((vector_size(ATLAS_VECTOR_BYTES)));

template <class T>
ATLAS_INLINE Vec<T> clamp_above(Vec<T> x, T limit) {
  return x > limit ? splat<T>(limit) : x;  // NaN stays NaN
}

template <class T>
ATLAS_INLINE Vec<T> clamp_below(Vec<T> x, T limit) {
  return x < limit ? splat<T>(limit) : x;
}

// e^x to 1e-7, x clamped to where the result is a normal number.
ATLAS_INLINE Vec<float> exponential(Vec<float> x) {
  constexpr float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  x = clamp_below(clamp_above(x, 88.0f), -87.0f);
  const Vec<float> shifted = x * 1.44269504f + magic;
  const Vec<float> n = shifted - magic;
  const Vec<float> r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  IntVec bits;
  __builtin_memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4b400000 + 127) << 23;
  Vec<float> power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return p * power;
}

ATLAS_INLINE Vec<double> exponential(Vec<double> x) {
  x = clamp_below(clamp_above(x, 709.0), -708.0);
  for (int64_t i = 0; i < kWidth<double>; ++i) x[i] = __builtin_exp(x[i]);
  return x;
}

// The normal distribution's lower tail at -|z|, given e^(-z²/2): e^(-z²/2) times a polynomial in
// 1 / (1 + 0.3 |z|), fitted to 1.3e-7 relative for |z| <= 13.5.
ATLAS_INLINE Vec<float> normal_tail(Vec<float> z, Vec<float> bell) {
  const Vec<float> t = 1.0f / ((z < 0 ? -z : z) * 0.3f + 1.0f);
  Vec<float> p = t * 3.593178213e-02f + -1.582761807e-01f;
  p = p * t + 2.082068907e-01f;
  p = p * t + -5.539408553e-02f;
  p = p * t + 1.294693149e-01f;
  p = p * t + 9.963746180e-02f;
  p = p * t + 1.207983629e-01f;
  p = p * t + 1.196263895e-01f;
  return p * t * bell;
}

ATLAS_INLINE Vec<double> normal_tail(Vec<double> z, Vec<double>) {
  for (int64_t i = 0; i < kWidth<double>; ++i)
    z[i] = 0.5 * __builtin_erfc(__builtin_fabs(z[i]) * 0.70710678118654752440);
  return z;
}

template <class T>
struct Activated {
  Vec<T> value, slope, curve;  // act(z), act'(z), act''(z)
};

// GELU: z P(z) with the normal distribution P; its density p has p' = -z p.
template <class T>
ATLAS_INLINE Activated<T> gelu(Vec<T> z) {
  const Vec<T> bell = exponential(z * z * T(-0.5)), tail = normal_tail(z, bell);
  const Vec<T> normal = z > 0 ? T(1) - tail : tail;
  const Vec<T> density = bell * T(0.39894228040143267794);
  return {z * normal, normal + z * density, density * (T(2) - z * z)};
}

// SiLU: z s with s = 1 / (1 + e^-z).
template <class T>
ATLAS_INLINE Activated<T> silu(Vec<T> z) {
  const Vec<T> e = exponential(-z), s = T(1) / (e + T(1)), rest = e * s;
  return {z * s, s * (z * rest + T(1)), s * rest * (z * (rest - s) + T(2))};
}

// Calls use(i, z, Activated) for every vector of z [n], n a multiple of the width.
template <class T, class Use>
ATLAS_INLINE void each_activated(Activation activation, const T* z, int64_t n, const Use& use) {
  constexpr int64_t w = kWidth<T>;
  switch (activation) {
    case Activation::gelu:
      for (int64_t i = 0; i < n; i += w) use(i, gelu<T>(load(z + i)));
      return;
    case Activation::silu:
      for (int64_t i = 0; i < n; i += w) use(i, silu<T>(load(z + i)));
      return;
    case Activation::identity:
      for (int64_t i = 0; i < n; i += w) use(i, Activated<T>{load(z + i), splat(T(1)), Vec<T>{}});
  }
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
