#pragma once
#include "kernels/cuda/launcher.h"
#include "kernels/cuda/newton_schulz.h"

namespace atlas::kernels::cuda {

constexpr int kOmegaMatrices = 3;  // most that a memory has

// A tensor of up to four dimensions, strides in elements; data may be null where it is empty.
struct OmegaTensor {
  const void* data;
  int64_t stride[4];
  Dtype dtype;
  bool present;
};

// A contiguous tensor to write; data is null where nobody wants it.
struct OmegaResult {
  void* data;
  Dtype dtype;
};

enum class OmegaActivation : int { gelu, silu, identity };

// One matrix of a state, held transposed, [in, ld] with ld >= out, from float `at` of the state.
struct OmegaMatrix {
  int in, out, ld, at;
};

// What follows from the options; omega_plan.h fills it in.
struct OmegaSizes {
  OmegaMatrix matrix[kOmegaMatrices];
  int first_layer;     // matrices that see phi
  int momentum_from;   // the first matrix with a momentum, where there is one
  int rows;            // most window rows of a chunk, chunk + window - 1
  int kp, vp, fp, rp;  // leading dimensions of rows of keys, values, hidden layers, window rows
  int state;           // floats of a state
  int largest;         // floats of its largest matrix
  int side;            // the largest smaller side of a matrix
  bool elongated;      // one of them has a side at least twice the other
  int tile, tp;        // features that are made at a time, and their leading dimension
};

// What forward, backward and update share. Letters as in docs/math/omega_rule.md.
struct OmegaOptions {
  int heads, key, value, features, hidden, window;
  int slices;    // a block has `value` of a linear memory's slices * value outputs; else 1
  int matrices;  // 1: linear, W; 2: MLP, W1 W2; 3: gated MLP, W1 W3 W2
  int chunk;     // most tokens of a chunk in this call
  int degree;    // 0: phi is the identity
  OmegaActivation activation;
  bool l2;        // else the dot objective
  bool residual;  // M adds the raw input; V = K
  bool momentum;
  int64_t chunk_size, ns_every;
  const float* scales;            // [degree + 1] or null: 1 / sqrt(l!)
  NewtonSchulzSchedule schedule;  // steps == 0: no Newton-Schulz
  float ns_scales[kOmegaMatrices];
  OmegaSizes sizes;
};

// A kernel's place to work in: a block takes its buffers from shared memory as long as they fit,
// then from its part of the scratch.
struct OmegaSpace {
  int shared_floats;
  int64_t device_floats;  // of one block
  float* device;
};

struct OmegaInputs {
  OmegaTensor q, k, v;                           // [B, T, H, K], [B, T, H, K], [B, T, H, V]
  OmegaTensor gamma, eta, log_alpha, log_theta;  // [B, T, H, W], [B, T, H]
  OmegaTensor weights[kOmegaMatrices];           // each [N, H, out, in]
  OmegaTensor momentum[kOmegaMatrices];          // absent: 0
  OmegaTensor chunk_weights[kOmegaMatrices];     // absent: weights
  OmegaTensor k_tail, v_tail;                    // [N, W-1, H, K], [N, W-1, H, V]
  const int64_t* position;                       // [N] or null: 0
  const void* cu_seqlens;                        // [N + 1] or null: batch rows are the sequences
  bool wide_seqlens;                             // int64, else int32
  int64_t sequences, tokens;                     // N, and T of every batch row
  int64_t checkpoints;                           // all that shapes allow for
};

struct OmegaForward {
  OmegaOptions options;
  OmegaInputs in;
  OmegaSpace space;
  OmegaResult o;  // [B, T, H, V]
  // The final state, contiguous float; null where it is not wanted.
  float *weights[kOmegaMatrices], *momentum[kOmegaMatrices],
      *chunk_weights[kOmegaMatrices];  // [N, H, out, in]
  OmegaResult k_tail, v_tail;          // [N, W-1, H, K], [N, W-1, H, V]
  int64_t* position;                   // [N]
  // The transposed state that enters each chunk, [checkpoints, H, in, out], or null.
  float *weights_checkpoints[kOmegaMatrices], *momentum_checkpoints[kOmegaMatrices];
};

// What a launch of the backward makes. Of a linear memory's dual form, where (sequence, head) pairs
// leave multiprocessors idle, `states` walks through an item's chunks for the gradients of the
// states alone and leaves those with which each chunk begins; with these at hand, `tokens` makes
// all other gradients of different chunks at the same time.
enum class OmegaStage : int { all, states, tokens };

struct OmegaBackward {
  OmegaOptions options;
  OmegaInputs in;
  OmegaSpace space;
  const float *weights_checkpoints[kOmegaMatrices], *momentum_checkpoints[kOmegaMatrices];
  // Gradients of the outputs; absent: 0.
  OmegaTensor grad_o;  // [B, T, H, V]
  OmegaTensor grad_final_weights[kOmegaMatrices], grad_final_momentum[kOmegaMatrices],
      grad_final_chunk_weights[kOmegaMatrices];      // [N, H, out, in]
  OmegaTensor grad_final_k_tail, grad_final_v_tail;  // [N, W-1, H, .]
  // Gradients of the inputs, contiguous.
  OmegaResult grad_q, grad_k, grad_v, grad_gamma, grad_eta, grad_log_alpha, grad_log_theta;
  OmegaResult grad_weights[kOmegaMatrices], grad_momentum[kOmegaMatrices],
      grad_chunk_weights[kOmegaMatrices];  // [N, H, out, in]
  OmegaResult grad_k_tail, grad_v_tail;
  float* grad_scales;  // [slices parts N H, degree + 1], to be summed over the first dimension
  // With slices of V each has its own summand of what they share, one behind the other, so that
  // grad_q has [slices, B, T, H, K]; likewise grad_k, grad_k_tail and the gates'. With parts those
  // of keys, values and tails have as many again, behind the first ones, by the chunk after the
  // token's.
  OmegaStage stage;
  int parts;  // blocks that share an item's chunks, part p taking every parts-th from p on; else 1
  // The gradients of the states that chunks leave, [checkpoints, H, in, out]; null without parts.
  float *weights_adjoints[kOmegaMatrices], *momentum_adjoints[kOmegaMatrices];
};

// Set in a position while the heads of its row read it, who count themselves in the bits below.
constexpr int64_t kReading = int64_t{1} << 62;

// One token for each of `rows` rows; row m works on slot slots[m] of the state, in place. `in` has
// the tokens as T = 1, B = M, and the state, which is written, too: weights, momentum (absent: none
// wanted), chunk_weights, and the tails.
struct OmegaUpdate {
  OmegaOptions options;
  OmegaInputs in;
  OmegaSpace space;
  int64_t* position;  // [N], written, too
  int64_t position_stride;
  int64_t capacity;   // positions that the state has room for, less than kReading
  const void* slots;  // [M] or null: in order
  bool wide_slots;    // int64, else int32
  OmegaResult o;      // [M, H, V]
  int64_t rows;
};

// Blocks that share each chunk of an item (omega_team.cuh).
struct OmegaTeam {
  // What a block has: window rows or tokens (0: there are no teams); columns of a matrix or some of
  // the features that it sees.
  int rows, columns, features;
  int64_t chunks;  // most of an item
  int64_t floats;  // that an item's blocks share, behind all blocks' scratch
  int64_t blocks;  // most of a launch
};

// How a call runs: blocks, threads of one, shared memory and scratch of one.
struct OmegaPlan {
  bool tensor_cores;  // in tf32; with Newton-Schulz, which amplifies round-off, in split tf32
  int64_t blocks;
  int threads;
  int64_t shared_bytes;   // of one block
  int64_t scratch_bytes;  // of one block
  int slices;             // of V, each a block's
  int parts;              // of an item's chunks in the backward; `blocks` counts those of all parts
  int residents = 1;      // blocks that are to share a multiprocessor
  OmegaTeam team;         // of a deep memory; `blocks` are then items
  bool on_chip;           // the memory and its momentum (backward: their gradients; Newton-Schulz:
                          // its squares, X and X's successor; update: all buffers) stay in shared
                          // memory
};

enum class OmegaPass : int { forward, backward, update };

// On a device of this capability whose blocks may have `limit` bytes of shared memory (negative:
// what the capability has); `items` (sequence, head) pairs of at most `chunks` chunks, which
// `packed` sequences share, or rows and heads; `rows` = B T H of the backward's gradients.
OmegaPlan omega_rule_plan(OmegaPass pass, const OmegaOptions& options, Dtype dtype, bool allow_tf32,
                          int64_t items, int capability, int multiprocessors, int limit = -1,
                          int64_t chunks = 1, int64_t packed = 1, int64_t rows = 0);
OmegaPlan omega_rule_plan(OmegaPass pass, const OmegaOptions& options, Dtype dtype, bool allow_tf32,
                          int64_t items, int64_t chunks = 1, int64_t packed = 1,
                          int64_t rows = 0);  // on the current device

cudaError_t omega_rule(const OmegaForward& args, const OmegaPlan& plan, cudaStream_t stream);
cudaError_t omega_team_forward(const OmegaForward& args, const OmegaPlan& plan,
                               cudaStream_t stream);
cudaError_t omega_team_backward(const OmegaBackward& args, const OmegaPlan& plan,
                                cudaStream_t stream);
cudaError_t omega_rule_backward(const OmegaBackward& args, const OmegaPlan& plan,
                                cudaStream_t stream);
cudaError_t omega_rule_update(const OmegaUpdate& args, const OmegaPlan& plan, cudaStream_t stream);

}  // namespace atlas::kernels::cuda
