#pragma once
// Sixteen-byte loads and stores of rows of any element type, converted to and from float.
#include "kernels/cuda/prim.cuh"

namespace atlas::kernels::cuda {

// Elements of T in one 16-byte access.
template <class T>
constexpr int kPackWidth = 16 / static_cast<int>(sizeof(T));

template <class T>
__device__ __forceinline__ void unpack(float (&out)[kPackWidth<T>], const Pack16& pack) {
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) out[i] = bits_to_float(pack.word[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      out[2 * i] = to_float(T{static_cast<uint16_t>(pack.word[i] & 0xffffu)});
      out[2 * i + 1] = to_float(T{static_cast<uint16_t>(pack.word[i] >> 16)});
    }
  }
}

template <class T>
__device__ __forceinline__ Pack16 pack(const float (&in)[kPackWidth<T>]) {
  Pack16 out;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4)
      out.word[i] = float_to_bits(in[i]);
    else
      out.word[i] = pack2<T>(in[2 * i], in[2 * i + 1]);
  }
  return out;
}

}  // namespace atlas::kernels::cuda
