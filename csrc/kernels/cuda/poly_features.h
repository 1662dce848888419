#pragma once
#include "kernels/cuda/launcher.h"

namespace atlas::kernels::cuda {

struct PolyFeatures {
  Dtype dtype;          // of x and out
  const void* x;        // [rows, dim], contiguous
  const float* scales;  // [degree + 1]; null: 1 / sqrt(l!)
  void* out;            // [rows, D], 16-byte aligned
  int64_t rows;
  int dim, degree;
};

struct PolyFeaturesBackward {
  Dtype dtype;          // of grad, x and grad_x
  const void* grad;     // [rows, D]
  const void* x;        // [rows, dim]
  const float* scales;  // [degree + 1] or null
  void* grad_x;         // [rows, dim] or null
  float* grad_scales;   // [degree + 1] or null
  float* partials;      // poly_features_blocks x (degree + 1); null without grad_scales
  float* scratch;       // poly_features_scratch floats
  int64_t rows;
  int dim, degree;
};

cudaError_t poly_features(const PolyFeatures& args, cudaStream_t stream);
cudaError_t poly_features_backward(const PolyFeaturesBackward& args, cudaStream_t stream);

// Blocks of the backward pass on the current device, and the floats of device memory that it needs
// because its sums do not fit in shared memory (mostly none).
int64_t poly_features_blocks(int64_t rows, int dim, int degree);
int64_t poly_features_scratch(int64_t rows, int dim, int degree);

}  // namespace atlas::kernels::cuda
