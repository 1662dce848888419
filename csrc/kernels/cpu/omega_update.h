#pragma once
#include "kernels/cpu/omega_rule.h"

namespace atlas::kernels::cpu {

// A state tensor that is updated in place; rows along the last dimension are dense.
struct StridedState {
  MutableArray array;
  bool present = false;
  int64_t stride[4] = {0, 0, 0, 0};

  Strided read() const {
    return {{array.data, array.dtype}, present, {stride[0], stride[1], stride[2], stride[3]}};
  }
};

// One token for each of `rows` rows; row m works on slot slots[m] of the state.
struct OmegaUpdate {
  OmegaOptions options;
  Strided q, k, v;                           // [M, H, K], [M, H, K], [M, H, V]
  Strided gamma, eta, log_alpha, log_theta;  // [M, H, W], [M, H]
  StridedState weights[kMostMatrices], momentum[kMostMatrices],
      chunk_weights[kMostMatrices];  // [N, H, out, in]; momentum absent: none
  StridedState k_tail, v_tail;       // [N, W-1, H, K], [N, W-1, H, V]
  const int64_t* slots;              // [M]
  const int64_t* positions;          // [M], before this token
  MutableArray o;                    // [M, H, V]
  int64_t rows;
  void* scratch;
};

ATLAS_DECLARE_PER_ISA(int64_t omega_update_scratch(const OmegaUpdate& args,
                                                   const ParallelFor& parallel);
                      void omega_update(const OmegaUpdate& args, const ParallelFor& parallel))

// Elements of the compute type that omega_update needs as scratch.
int64_t omega_update_scratch(const OmegaUpdate& args, const ParallelFor& parallel);
void omega_update(const OmegaUpdate& args, const ParallelFor& parallel);

}  // namespace atlas::kernels::cpu
