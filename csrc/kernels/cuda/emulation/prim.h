#pragma once
// The emulated twin of prim.cuh: same functions, same fragments; each carries its call site.
#include <type_traits>

#include "kernels/cuda/emulation/async_copy.h"
#include "kernels/cuda/emulation/numeric.h"
#include "kernels/cuda/emulation/warp.h"
#include "kernels/cuda/platform.cuh"

namespace atlas::kernels::cuda {

using emulation::Site;

inline int lane_id() { return static_cast<int>(threadIdx.x % kWarp); }
inline int fresh_lane_id() { return lane_id(); }

// ---- warps: all lanes of the mask take part

inline void sync_warp(unsigned mask = kAllLanes, Site site = Site::here()) {
  emulation::warp_sync(mask, site);
}

template <class T>
T shuffle(T value, int lane, unsigned mask = kAllLanes, Site site = Site::here()) {
  static_assert(std::is_trivially_copyable_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = emulation::warp_shuffle(bits, static_cast<unsigned>(lane) % kWarp, mask, site);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T shuffle_xor(T value, int lanes, unsigned mask = kAllLanes, Site site = Site::here()) {
  const int own = static_cast<int>(emulation::current_lane());
  return shuffle(value, own ^ lanes, mask, site);
}

inline unsigned ballot(bool predicate, unsigned mask = kAllLanes, Site site = Site::here()) {
  return emulation::warp_ballot(predicate, mask, site);
}

// ---- conversions, round to nearest even

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return emulation::bf16_to_float(x.bits); }
inline float to_float(f16 x) { return emulation::f16_to_float(x.bits); }

template <class T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return {emulation::float_to_bf16(x)};
  } else if constexpr (std::is_same_v<T, f16>) {
    return {emulation::float_to_f16(x)};
  } else {
    static_assert(std::is_same_v<T, float>);
    return x;
  }
}

// Two values in one register, the first one in the low half.
template <class T>
uint32_t pack2(float low, float high) {
  return static_cast<uint32_t>(from_float<T>(low).bits) |
         static_cast<uint32_t>(from_float<T>(high).bits) << 16;
}

// The tf32 value nearest to x, as mma.sync takes it.
inline uint32_t to_tf32(float x) {
  return emulation::settings().capability >= 80 ? emulation::float_to_tf32(x)
                                                : emulation::float_as_bits(x);
}

inline float bits_to_float(uint32_t x) { return emulation::bits_as_float(x); }
inline uint32_t float_to_bits(float x) { return emulation::float_as_bits(x); }

// Rounded exactly; the device's may be off by a unit in the last place.
inline float square_root(float x) { return sqrtf(x); }
inline float reciprocal(float x) { return 1.0f / x; }

inline float exponential(float x) { return expf(x); }
inline float logarithm(float x) { return logf(x); }
inline float error_function(float x) { return erff(x); }

// ---- a number that blocks share; nothing else is put in order

inline int64_t atomic_load(const int64_t* address) {
  return __atomic_load_n(address, __ATOMIC_RELAXED);
}

// What was there before.
inline int64_t atomic_add(int64_t* address, int64_t value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

inline void atomic_or(int64_t* address, int64_t bits) {
  __atomic_fetch_or(address, bits, __ATOMIC_RELAXED);
}

// ---- asynchronous copies from global to shared memory

inline void cp_async16(void* shared, const void* global, bool valid = true,
                       Site site = Site::here()) {
  emulation::async_copy(shared, valid ? global : nullptr, site);
}

inline void cp_async_commit() { emulation::async_commit(); }

template <int kPending>
void cp_async_wait() {
  static_assert(kPending >= 0);
  emulation::async_wait(kPending);
}

// ---- tensor cores

inline void ldmatrix_x4(uint32_t (&out)[4], const void* shared_row, Site site = Site::here()) {
  emulation::check_shared(shared_row, 16, "ldmatrix", site);
  uint16_t row[8];
  emulation::copy16(row, shared_row);
  emulation::warp_ldmatrix(out, row, false, site);
}

inline void ldmatrix_x4_transposed(uint32_t (&out)[4], const void* shared_row,
                                   Site site = Site::here()) {
  emulation::check_shared(shared_row, 16, "ldmatrix", site);
  uint16_t row[8];
  emulation::copy16(row, shared_row);
  emulation::warp_ldmatrix(out, row, true, site);
}

// c += a b with float sums. T: bf16 (sm_80 and up) or f16; 16x8x16.
template <class T>
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                 Site site = Site::here()) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, f16>);
  using emulation::Operand;
  emulation::warp_mma(c, a, b, std::is_same_v<T, bf16> ? Operand::bf16 : Operand::f16, site);
}

// c += a b for tf32 operands (sm_80 and up), 16x8x8.
inline void mma_tf32_16x8x8(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            Site site = Site::here()) {
  emulation::warp_mma(c, a, b, emulation::Operand::tf32, site);
}

}  // namespace atlas::kernels::cuda
