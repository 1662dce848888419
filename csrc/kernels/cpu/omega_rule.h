#pragma once
#include "kernels/cpu/array.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/newton_schulz.h"
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/poly_features.h"

namespace atlas::kernels::cpu {

// A tensor of up to four dimensions with strides in elements. An empty tensor is present, with no
// memory behind it.
struct Strided {
  Array array;
  bool present = false;
  int64_t stride[4] = {0, 0, 0, 0};

  explicit operator bool() const { return present; }
  int64_t at(int64_t i, int64_t j, int64_t k = 0) const {
    return i * stride[0] + j * stride[1] + k * stride[2];
  }
};

// One sequence: tokens [begin, end) of batch row `batch`; its first token has the given position.
struct OmegaSequence {
  int64_t batch, begin, end, position;
  int64_t first_checkpoint;  // its chunks' checkpoints stand at first_checkpoint, + 1, ...
};

// What forward, backward and update share. Letters as in docs/math/omega_rule.md.
struct OmegaOptions {
  int64_t heads, key_dim, value_dim, window, chunk_size;
  int degree;     // 0: phi is the identity
  bool l2;        // else the dot objective
  bool residual;  // M(x) = W x + the raw input; V = K
  PolyScales scales;
  const double* roots;  // poly_roots(key_dim, degree)
  NewtonSchulz ns;      // steps == 0: no Newton-Schulz
  int64_t ns_every;
  bool is_double;

  int64_t features() const { return degree == 0 ? key_dim : poly_feature_dim(key_dim, degree); }
};

struct OmegaInputs {
  Strided q, k, v;                           // [B, T, H, K], [B, T, H, K], [B, T, H, V]
  Strided gamma, eta, log_alpha, log_theta;  // [B, T, H, W], [B, T, H]
  Strided weights, momentum,
      chunk_weights;       // [N, H, V, D]; no momentum: 0; no chunk_weights: weights
  Strided k_tail, v_tail;  // [N, W-1, H, K], [N, W-1, H, V]
  const OmegaSequence* sequences;
  int64_t num_sequences;
  int64_t tokens;  // T, of every batch row
};

struct OmegaForward {
  OmegaOptions options;
  OmegaInputs in;
  MutableArray o;  // [B, T, H, V]
  // The final state, contiguous; null where it is not wanted.
  MutableArray weights, momentum, chunk_weights;  // [N, H, V, D]
  MutableArray k_tail, v_tail;                    // [N, W-1, H, K], [N, W-1, H, V]
  // The transposed state that enters each chunk, [checkpoints, H, D, V] of the compute type, or
  // null.
  void* weights_checkpoints;
  void* momentum_checkpoints;
  void* scratch;
};

struct OmegaBackward {
  OmegaOptions options;
  OmegaInputs in;
  const void* weights_checkpoints;
  const void* momentum_checkpoints;
  // Gradients of the outputs; data is null for an absent one.
  Strided grad_o;                                                             // [B, T, H, V]
  Strided grad_final_weights, grad_final_momentum, grad_final_chunk_weights;  // [N, H, V, D]
  Strided grad_final_k_tail, grad_final_v_tail;                               // [N, W-1, H, .]
  // Gradients of the inputs, contiguous; data is null where nobody needs one.
  MutableArray grad_q, grad_k, grad_v, grad_gamma, grad_eta, grad_log_alpha, grad_log_theta;
  MutableArray grad_weights, grad_momentum, grad_chunk_weights;  // [N, H, V, D]
  MutableArray grad_k_tail, grad_v_tail;
  double* grad_scales;  // [N * H, degree + 1]
  void* scratch;
};

ATLAS_DECLARE_PER_ISA(int64_t omega_rule_scratch(const OmegaOptions& options, const OmegaInputs& in,
                                                 bool backward, const ParallelFor& parallel);
                      void omega_rule(const OmegaForward& args, const ParallelFor& parallel);
                      void omega_rule_backward(const OmegaBackward& args,
                                               const ParallelFor& parallel))

// Elements of the compute type that a pass needs as scratch.
int64_t omega_rule_scratch(const OmegaOptions& options, const OmegaInputs& in, bool backward,
                           const ParallelFor& parallel);
void omega_rule(const OmegaForward& args, const ParallelFor& parallel);
void omega_rule_backward(const OmegaBackward& args, const ParallelFor& parallel);

}  // namespace atlas::kernels::cpu
