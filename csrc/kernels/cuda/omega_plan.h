#pragma once
#include "kernels/cuda/omega_work.cuh"

namespace atlas::kernels::cuda {

// Features of one tile: so many that the chunk's rows of them take about this many floats, shared
// by the blocks of a multiprocessor.
constexpr int kLiftFloats = 8 << 10;

// The options with their sizes, of one slice of V and one of `residents` blocks.
inline OmegaOptions sized(OmegaOptions o, int slices, int residents = 1) {
  o.slices = slices;
  o.value /= slices;
  OmegaSizes& sz = o.sizes;
  sz = OmegaSizes();
  sz.first_layer = is_deep(o) ? o.matrices - 1 : 1;
  sz.rows = o.chunk + o.window - 1;
  sz.kp = leading(o.degree > 0 ? o.key + 1 : o.key);  // a column of ones beside the variables
  sz.vp = leading(o.value);
  sz.fp = leading(o.hidden);
  sz.rp = leading(sz.rows);
  for (int l = 0; l < o.matrices; ++l) {
    const bool last = l == last_matrix(o);
    OmegaMatrix& m = sz.matrix[l];
    m.in = is_deep(o) && last ? o.hidden : o.features;
    m.out = last ? o.value : o.hidden;
    m.ld = leading(m.out);
    m.at = sz.state;
    sz.state += m.in * m.ld;
    sz.largest = larger(sz.largest, m.in * m.ld);
    sz.side = larger(sz.side, m.in < m.out ? m.in : m.out);
    sz.elongated = sz.elongated || is_elongated(m.in, m.out);
  }
  if (o.degree > 0) {
    const int most = larger(kLiftFloats / residents / sz.rows / 32 * 32, 32);
    sz.tile = o.features < most ? o.features : most;
    sz.tp = leading(sz.tile);
  }
  return o;
}

// The space of a call whose blocks work in `scratch`.
inline OmegaSpace omega_space(const OmegaPlan& plan, float* scratch) {
  constexpr int64_t kFloat = sizeof(float);
  return {static_cast<int>(plan.shared_bytes / kFloat), plan.scratch_bytes / kFloat, scratch};
}

}  // namespace atlas::kernels::cuda
