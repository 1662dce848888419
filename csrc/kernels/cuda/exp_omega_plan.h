#pragma once
#include "kernels/cuda/exp_omega_work.cuh"
#include "kernels/cuda/omega_plan.h"

namespace atlas::kernels::cuda {

// The options with their sizes. W2 stands first in a state, so that it has the same place in its
// momentum, which is W2's alone; a linear memory has no state.
inline ExpOmegaOptions sized(ExpOmegaOptions options, int slices, int residents = 1) {
  options.omega = sized(options.omega, slices, residents);
  OmegaOptions& o = options.omega;
  OmegaSizes& sz = o.sizes;
  if (!is_deep(o)) {
    sz.state = 0;
    return options;
  }
  OmegaMatrix& last = sz.matrix[last_matrix(o)];
  sz.momentum_from = last_matrix(o);
  last.at = 0;
  int at = last.in * last.ld;
  for (int l = 0; l < sz.first_layer; ++l) {
    sz.matrix[l].at = at;
    at += sz.matrix[l].in * sz.matrix[l].ld;
  }
  return options;
}

}  // namespace atlas::kernels::cuda
