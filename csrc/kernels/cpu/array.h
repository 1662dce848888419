#pragma once
#include <cstdint>

namespace atlas::kernels::cpu {

enum class Dtype : int { f32, f64, bf16, f16 };

// Memory of a tensor with its element type. Kernels convert row by row on load and store, so no
// tensor is upcast whole.
struct Array {
  const void* data = nullptr;
  Dtype dtype = Dtype::f32;
};

struct MutableArray {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
};

}  // namespace atlas::kernels::cpu
