#pragma once
#include "kernels/cuda/launcher.h"

namespace atlas::kernels::cuda {

// Rows a, b, c of the steps: step k takes row min(k, rows - 1), of `table` where that is given.
struct NewtonSchulzSchedule {
  float row[8][3];
  int rows, steps;
  const float* table;  // [steps, 3] in device memory, or null
};

struct NewtonSchulz {
  Dtype dtype;
  const void* x;     // [batch, m, n], contiguous
  const void* grad;  // [batch, m, n]; null in the forward
  void* out;         // [batch, m, n]: the result, or grad_x
  void* scratch;     // newton_schulz_scratch bytes; backward only
  int64_t batch;
  int m, n;
  float scale, eps;
  bool allow_tf32;
  NewtonSchulzSchedule schedule;
};

// Whether the fused kernel takes matrices of this size on the current device: the shorter side is
// at most 128 and a matrix fits in shared memory. All others go through matrix products.
bool newton_schulz_is_fused(Dtype dtype, int m, int n, bool backward);
int64_t newton_schulz_scratch(const NewtonSchulz& args);
cudaError_t newton_schulz(const NewtonSchulz& args, cudaStream_t stream);
cudaError_t newton_schulz_backward(const NewtonSchulz& args, cudaStream_t stream);

}  // namespace atlas::kernels::cuda
