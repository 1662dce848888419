#pragma once
// Conversions between float and the 16-bit and tf32 types, bit by bit as the hardware makes them:
// round to nearest even, subnormals kept, every NaN becomes the canonical one.
#include <cstdint>
#include <cstring>

namespace atlas::emulation {

inline uint32_t float_as_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float bits_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline bool is_nan_bits(uint32_t bits) { return (bits & 0x7fffffffu) > 0x7f800000u; }

inline float bf16_to_float(uint16_t bits) {
  return bits_as_float(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t float_to_bf16(float x) {
  const uint32_t bits = float_as_bits(x);
  if (is_nan_bits(bits)) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

inline float f16_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return bits_as_float(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return bits_as_float(sign | float_as_bits(subnormal));
}

inline uint16_t float_to_f16(float x) {
  const uint32_t bits = float_as_bits(x), magnitude = bits & 0x7fffffffu;
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (is_nan_bits(bits)) return 0x7fff;
  if (magnitude >= 0x47800000u) return sign | 0x7c00u;  // 65536 and up; 65520 rounds up below
  if (magnitude >= 0x38800000u) {                       // normal: from 2^-14
    const uint32_t rebased = magnitude - (112u << 23);
    return static_cast<uint16_t>(sign | (rebased + 0xfffu + (rebased >> 13 & 1)) >> 13);
  }
  // 0.5 has an ulp of 2^-24, the step of subnormals: adding it rounds x to that step.
  return static_cast<uint16_t>(sign |
                               (float_as_bits(bits_as_float(magnitude) + 0.5f) - 0x3f000000u));
}

// cvt.rna: to nearest, ties away from zero.
inline uint32_t float_to_tf32(float x) {
  const uint32_t bits = float_as_bits(x);
  if (is_nan_bits(bits)) return 0x7fffffffu;
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

}  // namespace atlas::emulation
