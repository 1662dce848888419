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

enum class Activation : int { gelu, silu, identity };

constexpr int kMostMatrices = 3;

// What forward, backward and update share. Letters as in docs/math/omega_rule.md.
struct OmegaOptions {
  int64_t heads, key_dim, value_dim, window, chunk_size;
  int matrices;    // 1: linear, W; 2: MLP, W1 W2; 3: gated MLP, W1 W3 W2
  int64_t hidden;  // F; 0 for a linear memory
  Activation activation;
  int degree;     // 0: phi is the identity
  bool l2;        // else the dot objective
  bool residual;  // M adds the raw input; V = K
  PolyScales scales;
  const double* roots;  // poly_roots(key_dim, degree)
  NewtonSchulz ns;      // steps == 0: no Newton-Schulz; its scale is that of each matrix:
  double ns_scales[kMostMatrices];
  int64_t ns_every;
  bool is_double;

  int64_t features() const { return degree == 0 ? key_dim : poly_feature_dim(key_dim, degree); }
  bool deep() const { return matrices > 1; }
  // Matrix l is [out, in].
  int64_t rows_of(int l) const { return l + 1 == matrices ? value_dim : hidden; }
  int64_t cols_of(int l) const { return deep() && l + 1 == matrices ? hidden : features(); }
  NewtonSchulz ns_of(int l) const { return {ns.table, ns.steps, ns_scales[l], ns.eps}; }
};

struct OmegaInputs {
  Strided q, k, v;                           // [B, T, H, K], [B, T, H, K], [B, T, H, V]
  Strided gamma, eta, log_alpha, log_theta;  // [B, T, H, W], [B, T, H]
  Strided weights[kMostMatrices];            // each [N, H, out, in]
  Strided momentum[kMostMatrices];           // absent: 0
  Strided chunk_weights[kMostMatrices];      // absent: weights
  Strided k_tail, v_tail;                    // [N, W-1, H, K], [N, W-1, H, V]
  const OmegaSequence* sequences;
  int64_t num_sequences;
  int64_t tokens;  // T, of every batch row
};

struct OmegaForward {
  OmegaOptions options;
  OmegaInputs in;
  MutableArray o;  // [B, T, H, V]
  // The final state, contiguous; null where it is not wanted.
  MutableArray weights[kMostMatrices], momentum[kMostMatrices],
      chunk_weights[kMostMatrices];  // [N, H, out, in]
  MutableArray k_tail, v_tail;       // [N, W-1, H, K], [N, W-1, H, V]
  // The transposed state that enters each chunk, [checkpoints, H, in, out] of the compute type, or
  // null.
  void* weights_checkpoints[kMostMatrices];
  void* momentum_checkpoints[kMostMatrices];
  void* scratch;
};

struct OmegaBackward {
  OmegaOptions options;
  OmegaInputs in;
  const void* weights_checkpoints[kMostMatrices];
  const void* momentum_checkpoints[kMostMatrices];
  // Gradients of the outputs; data is null for an absent one.
  Strided grad_o;  // [B, T, H, V]
  Strided grad_final_weights[kMostMatrices], grad_final_momentum[kMostMatrices],
      grad_final_chunk_weights[kMostMatrices];   // [N, H, out, in]
  Strided grad_final_k_tail, grad_final_v_tail;  // [N, W-1, H, .]
  // Gradients of the inputs, contiguous; data is null where nobody needs one.
  MutableArray grad_q, grad_k, grad_v, grad_gamma, grad_eta, grad_log_alpha, grad_log_theta;
  MutableArray grad_weights[kMostMatrices], grad_momentum[kMostMatrices],
      grad_chunk_weights[kMostMatrices];  // [N, H, out, in]
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
