#pragma once
#include "kernels/cuda/exp_omega_rule.h"

namespace atlas::kernels::cuda {

// What follows from the options; exp_omega_update.cu fills it in.
struct ExpWalkSizes {
  int rows;       // of the window whose kernel sums are wanted; 0: no error signal depends on them
  int row, wide;  // floats of a token's row, and of all its rows without momenta
  int kernel_ld;  // of the kernel of a key and the window's rows and the query
  int shares;     // of a block's keys: so many threads sum for one column
  int sums;       // floats of the sums of a block
};

// One token for each of N sequences, in place: `omega` has the tokens, the positions, and the
// matrices, of which only the last one has a momentum; the state's rows stand beside it.
struct ExpOmegaUpdate {
  OmegaUpdate omega;
  ExpNormalize normalize;
  float scale;
  // [N, capacity, H, .], written, too; momentum absent: none wanted
  OmegaTensor keys, coefficients[kMostSets], momentum[kMostSets], reference[kMostSets];
  ExpWalkSizes walk;
  int parts;           // blocks that share the past of one sequence and head
  int64_t partial_ld;  // of `partial`
  float* partial;      // [N, H, parts, sums, then the maximum and the sum of the read's kernel]
};

// How a call runs: two launches, whose blocks use the same scratch behind `partial`.
struct ExpOmegaUpdatePlan {
  OmegaPlan walk, finish;
  int parts;
  int64_t partial_floats, scratch_floats;
};

// `capacity`: tokens that the state has room for; the rest as of omega_rule_plan.
ExpOmegaUpdatePlan exp_omega_update_plan(const ExpOmegaOptions& options, int64_t capacity,
                                         int64_t items, int capability, int multiprocessors,
                                         int limit = -1);
ExpOmegaUpdatePlan exp_omega_update_plan(const ExpOmegaOptions& options, int64_t capacity,
                                         int64_t items);  // on the current device

// `scratch` has the plan's partial_floats and scratch_floats.
cudaError_t exp_omega_rule_update(const ExpOmegaUpdate& args, const ExpOmegaUpdatePlan& plan,
                                  float* scratch, cudaStream_t stream);

}  // namespace atlas::kernels::cuda
