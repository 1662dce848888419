#pragma once
#include "kernels/cuda/omega_rule.h"

namespace atlas::kernels::cuda {

enum class ExpNormalize : int { none, softmax, rms };

constexpr int kMostSets = 2;  // rows of W1, and of W3 of a gated memory

// Letters and symbols as in docs/math/exp_omega_rule.md.
struct ExpOmegaOptions {
  // Of the memory without the map: W0 (and W0g) [F, K] stand where W1 (and W3) would, and W2 [V, F]
  // behind them; a linear memory counts as one matrix and has none. Degree 0, features = key, no
  // Newton-Schulz; `momentum` is of the rows and of W2.
  OmegaOptions omega;
  ExpNormalize normalize;
  float scale;        // of the products inside exp
  int64_t most_rows;  // that a sequence may have after the call; what shapes allow for
};

struct ExpOmegaInputs {
  OmegaInputs omega;  // of the matrices; only the last one has a momentum
  // The state's rows, [N, capacity, H, .]: all absent, or all present but for the momentum.
  OmegaTensor keys, coefficients[kMostSets], momentum[kMostSets], reference[kMostSets];
  int64_t capacity;  // tokens that the state has room for; 0 without a state
};

// What the backward needs again; null where it is not wanted or not needed. Zero where a chunk or a
// row does not exist.
struct ExpOmegaSaved {
  int64_t window_rows;  // of each chunk; at least the most that any has
  float* rows;          // [chunks, H, window_rows, parts, R] the window's rows after the chunk
  float* signals;      // [chunks, H, window_rows, sets, R] z(k_i), the raw-input maps included; e_i
  float* reads;        // [B, T, H, sets, R] the read's kernel sums, divided
  float* normalizers;  // [B, T, H] log of the kernel's sum
  float* weights;      // [chunks, H, F, V] W2 transposed at the chunk's start
  float* momentum;     // likewise
};

struct ExpOmegaForward {
  ExpOmegaOptions options;
  ExpOmegaInputs in;
  OmegaSpace space;
  OmegaResult o;  // [B, T, H, V]
  // The final state, contiguous; null where it is not wanted. A sequence whose position is
  // negative, or beyond the capacity of the state it came from or of this one, gets NaN and -1 as
  // its position.
  int64_t capacity;  // negative: no final state
  OmegaResult keys;  // [N, capacity, H, K]
  float *coefficients[kMostSets], *momentum[kMostSets],
      *reference[kMostSets];  // [N, capacity, H, R]
  float *weights[kOmegaMatrices], *weights_momentum,
      *chunk_weights[kOmegaMatrices];  // [N, H, out, in]
  OmegaResult k_tail, v_tail;          // [N, W-1, H, .]
  int64_t* position;                   // [N]
  ExpOmegaSaved saved;
};

struct ExpOmegaBackward {
  ExpOmegaOptions options;
  ExpOmegaInputs in;
  OmegaSpace space;
  ExpOmegaSaved saved;
  // Gradients of the outputs; absent: 0.
  OmegaTensor grad_o;           // [B, T, H, V]
  int64_t final_capacity;       // negative: no final state
  OmegaTensor grad_final_keys;  // [N, final_capacity, H, .], as the rows'
  OmegaTensor grad_final_coefficients[kMostSets], grad_final_momentum[kMostSets],
      grad_final_reference[kMostSets];
  OmegaTensor grad_final_weights[kOmegaMatrices], grad_final_weights_momentum,
      grad_final_chunk_weights[kOmegaMatrices];      // [N, H, out, in]
  OmegaTensor grad_final_k_tail, grad_final_v_tail;  // [N, W-1, H, .]
  // Gradients of the inputs, contiguous; null where nobody needs one. Those of the state's rows are
  // zero on entry.
  OmegaResult grad_q, grad_k, grad_v, grad_gamma, grad_eta, grad_log_alpha, grad_log_theta;
  int64_t capacity;  // of the state that the call began with
  OmegaResult grad_keys, grad_coefficients[kMostSets], grad_momentum[kMostSets],
      grad_reference[kMostSets];
  OmegaResult grad_weights[kOmegaMatrices], grad_weights_momentum,
      grad_chunk_weights[kOmegaMatrices];  // [N, H, out, in]
  OmegaResult grad_k_tail, grad_v_tail;
};

// On a device of this capability whose blocks may have `limit` bytes of shared memory (negative:
// what the capability has); `items` (sequence, head) pairs.
OmegaPlan exp_omega_rule_plan(OmegaPass pass, const ExpOmegaOptions& options, Dtype dtype,
                              bool allow_tf32, int64_t items, int capability, int multiprocessors,
                              int limit = -1);
OmegaPlan exp_omega_rule_plan(OmegaPass pass, const ExpOmegaOptions& options, Dtype dtype,
                              bool allow_tf32, int64_t items);  // on the current device

cudaError_t exp_omega_rule(const ExpOmegaForward& args, const OmegaPlan& plan, cudaStream_t stream);
cudaError_t exp_omega_rule_backward(const ExpOmegaBackward& args, const OmegaPlan& plan,
                                    cudaStream_t stream);

}  // namespace atlas::kernels::cuda
