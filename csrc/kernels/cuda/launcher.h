#pragma once
// What the declarations of launchers need; for the operators, which are compiled without nvcc.
#include <cstdint>

#ifdef ATLAS_EXT_EMULATED
#include "kernels/cuda/emulation/device.h"
#else
#include <cuda_runtime_api.h>
#endif

namespace atlas::kernels::cuda {

enum class Dtype : int { f32, bf16, f16 };

}  // namespace atlas::kernels::cuda
