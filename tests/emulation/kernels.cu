// The kernels of the emulator's tests as nvcc compiles them: what launch traces are checked
// against.
#include "kernels.cuh"

namespace kernels_under_test {

template ATLAS_KERNEL void tile_product_kernel<bf16, 1, true>(const bf16*, const bf16*, float*,
                                                              int);
template ATLAS_KERNEL void tile_product_kernel<f16, 1, true>(const bf16*, const bf16*, float*, int);

}  // namespace kernels_under_test
