#pragma once
#include "kernels/cpu/omega_rule.h"

namespace atlas::kernels::cpu {

enum class Normalize : int { none, softmax, rms };

constexpr int kMostSets = 2;  // rows of W1, and of W3 of a gated memory

// Letters and symbols as in docs/math/exp_omega_rule.md.
struct ExpOmegaOptions {
  // Of the memory without the map: a linear one has no matrix; W0 (and W0g) [F, K] stand where W1
  // (and W3) would, and W2 [V, F] behind them. Degree 0, no Newton-Schulz.
  OmegaOptions omega;
  Normalize normalize;
  double scale;  // of the products inside exp

  int sets() const { return omega.deep() ? omega.matrices - 1 : 1; }
  int64_t row() const { return omega.deep() ? omega.hidden : omega.value_dim; }
  // The error signals depend on what the memory answers.
  bool reads_window() const { return omega.l2 || omega.deep(); }
  bool keeps_reads() const { return omega.deep() || normalize != Normalize::none; }
};

struct ExpOmegaInputs {
  // Of the matrices; only the last one has a momentum. A state's chunk_weights are all present.
  OmegaInputs omega;
  // The state's rows, [N, capacity, H, .]: all absent, or all present but for the momentum.
  Strided keys, coefficients[kMostSets], momentum[kMostSets], reference[kMostSets];
};

// What the backward needs again, of the compute type; null where it is not wanted or not needed.
struct ExpOmegaSaved {
  int64_t window_rows;  // of each chunk; at least the most that any has
  void* rows;           // [chunks, H, window_rows, columns] the window's rows after the chunk
  void* signals;        // [chunks, H, window_rows, sets, R] z(k_i), the raw-input maps included
  void* reads;          // [B, T, H, sets, R] the read's kernel sums, divided
  void* normalizers;    // [B, T, H] log of the kernel's sum
  void* weights;        // [chunks, H, F, V] W2 transposed at the chunk's start
  void* momentum;       // likewise
};

struct ExpOmegaForward {
  ExpOmegaOptions options;
  ExpOmegaInputs in;
  MutableArray o;  // [B, T, H, V]
  // The final state, contiguous; null and capacity < 0 where it is not wanted.
  int64_t capacity;
  MutableArray keys, coefficients[kMostSets], momentum[kMostSets],
      reference[kMostSets];  // [N, capacity, H, .]
  MutableArray weights[kMostMatrices], weights_momentum,
      chunk_weights[kMostMatrices];  // [N, H, out, in]
  MutableArray k_tail, v_tail;       // [N, W-1, H, .]
  ExpOmegaSaved saved;
  void* scratch;
};

struct ExpOmegaBackward {
  ExpOmegaOptions options;
  ExpOmegaInputs in;
  ExpOmegaSaved saved;
  // Gradients of the outputs.
  Strided grad_o, grad_final_keys, grad_final_coefficients[kMostSets],
      grad_final_momentum[kMostSets], grad_final_reference[kMostSets];
  Strided grad_final_weights[kMostMatrices], grad_final_weights_momentum,
      grad_final_chunk_weights[kMostMatrices], grad_final_k_tail, grad_final_v_tail;
  // Gradients of the inputs, contiguous; data is null where nobody needs one. Those of the state's
  // rows are zero on entry.
  MutableArray grad_q, grad_k, grad_v, grad_gamma, grad_eta, grad_log_alpha, grad_log_theta;
  int64_t capacity;  // of the state that the call began with
  MutableArray grad_keys, grad_coefficients[kMostSets], grad_momentum[kMostSets],
      grad_reference[kMostSets];
  MutableArray grad_weights[kMostMatrices], grad_weights_momentum,
      grad_chunk_weights[kMostMatrices], grad_k_tail, grad_v_tail;
  void* scratch;
};

// A state's tensor, written in place.
struct StateView {
  MutableArray array;
  int64_t stride[4] = {0, 0, 0, 0};
};

// One token of each sequence: `in` holds the state as it enters and sequences of one token; the
// views are those of the same state. Momenta are absent without log_theta.
struct ExpOmegaUpdate {
  ExpOmegaOptions options;
  ExpOmegaInputs in;
  MutableArray o;  // [N, H, V]
  StateView keys, coefficients[kMostSets], momentum[kMostSets], reference[kMostSets];
  StateView weights[kMostMatrices], weights_momentum, chunk_weights[kMostMatrices];
  StateView k_tail, v_tail;
  void* scratch;
};

enum class ExpOmegaPass : int { forward, backward, update };

ATLAS_DECLARE_PER_ISA(
    int64_t exp_omega_rule_scratch(ExpOmegaPass pass, const ExpOmegaOptions& options,
                                   const ExpOmegaInputs& in, const ParallelFor& parallel);
    void exp_omega_rule(const ExpOmegaForward& args, const ParallelFor& parallel);
    void exp_omega_rule_backward(const ExpOmegaBackward& args, const ParallelFor& parallel);
    void exp_omega_update(const ExpOmegaUpdate& args, const ParallelFor& parallel))

// Elements of the compute type that a pass needs as scratch.
int64_t exp_omega_rule_scratch(ExpOmegaPass pass, const ExpOmegaOptions& options,
                               const ExpOmegaInputs& in, const ParallelFor& parallel);
void exp_omega_rule(const ExpOmegaForward& args, const ParallelFor& parallel);
void exp_omega_rule_backward(const ExpOmegaBackward& args, const ParallelFor& parallel);
void exp_omega_update(const ExpOmegaUpdate& args, const ParallelFor& parallel);

}  // namespace atlas::kernels::cpu
