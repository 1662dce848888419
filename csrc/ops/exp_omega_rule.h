#pragma once
// Arguments of the exponential Omega rule's operators, checked: what every device shares.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "ops/omega_rule.h"

namespace atlas::ops {

// The options in the order of the schemas.
struct ExpOmegaRuleOptions {
  const std::string& objective;
  const std::string& activation;
  bool residual;
  const std::string& normalize;
  double scale;
  int64_t chunk_size;
};

// What comes per token.
struct ExpOmegaTokens {
  const Tensor &q, &k, &v, &gamma, &eta;
  const MaybeTensor &log_alpha, &log_theta;
};

// A state, or the weights alone; the lists are in the order of ExpOmegaState.
struct ExpOmegaStateArguments {
  const Tensors& weights;
  const MaybeTensor& keys;
  const Tensors& coefficients;
  const Tensors& momentum;
  const Tensors& chunk_weights;
  const MaybeTensor& k_tail;
  const MaybeTensor& v_tail;
  const MaybeTensor& position;
};

// How the caller of exp_omega_rule names what this has.
inline std::string state_prefix(const ExpOmegaStateArguments& state) {
  return state.keys ? "initial_state." : "";
}

// The letters of a call; its matrices are W0, W0g and W2, none of a linear memory.
struct ExpOmegaShape {
  OmegaShape omega;
  int64_t sets = 1, row = 0;            // rows of one token, and their width
  int64_t capacity = 0;                 // tokens the state that comes in has room for
  int64_t chunks = 0, window_rows = 0;  // upper bounds that follow from shapes alone

  bool deep() const { return omega.hidden > 0; }
  size_t matrices() const { return deep() ? static_cast<size_t>(omega.matrices) : 0; }
};

// The options that both rules have.
inline OmegaRuleOptions omega_options_of(const ExpOmegaRuleOptions& given) {
  static const std::string schedule = "muon", scale = "none";
  return {given.objective, given.activation, given.residual, 0, 0, schedule, scale, 1,
          given.chunk_size};
}

inline void check_count(const char* op, const std::string& name, const Tensors& tensors,
                        size_t wanted) {
  ATLAS_CHECK(tensors.size() == wanted, op, name, std::to_string(wanted) + " tensors",
              std::to_string(tensors.size()) + " tensors");
}

// A tensor of a state in the dtype of the sums.
inline void check_sums(const char* op, const std::string& name, const Tensor& tensor,
                       const Tensor& q, const std::vector<int64_t>& shape, const char* letters) {
  check_device(op, name, tensor, q);
  ATLAS_CHECK(tensor.scalar_type() == compute_type(q), op, name, dtype_name(compute_type(q)),
              describe(tensor));
  check_shape(op, name, tensor, shape, letters);
}

// Rows of a state: one tensor for each set.
inline void check_rows(const char* op, const std::string& name, const Tensors& tensors,
                       const ExpOmegaShape& shape, const Tensor& q) {
  for (int64_t set = 0; set < shape.sets; ++set)
    check_sums(op, name + "[" + std::to_string(set) + "]", tensors[set], q,
               {shape.omega.sequences, shape.capacity, shape.omega.heads, shape.row},
               "[N, capacity, H, V or F]");
}

inline Tensors after(const Tensors& tensors, int64_t first) {
  return Tensors(tensors.begin() + first, tensors.end());
}

inline void check_floating_shape(const char* op, const std::string& name, const Tensor& tensor,
                                 const Tensor& q, const std::vector<int64_t>& shape,
                                 const char* letters) {
  check_device(op, name, tensor, q);
  check_floating(op, name, tensor);
  check_shape(op, name, tensor, shape, letters);
}

inline void check_exp_options(const char* op, const ExpOmegaRuleOptions& given, const Tensor& q,
                              const Tensor& v) {
  check_options(op, omega_options_of(given), std::nullopt, std::nullopt, q, v);
  ATLAS_CHECK(given.normalize == "none" || given.normalize == "softmax" || given.normalize == "rms",
              op, "normalize", "'none', 'softmax' or 'rms'", "'" + given.normalize + "'");
}

// Checks all but tokens and options; `prefix` is how the caller names the state.
inline ExpOmegaShape check_exp_state(const char* op, const std::string& prefix,
                                     const OmegaShape& letters, const ExpOmegaStateArguments& state,
                                     const Tensor& q) {
  ExpOmegaShape shape{letters};
  const std::string name = prefix + "weights";
  const size_t count = state.weights.size();
  ATLAS_CHECK(count == 0 || count == 2 || count == 3, op, name, "none, (W0, W2) or (W0, W0g, W2)",
              std::to_string(count) + " matrices");
  shape.row = letters.value;
  if (count > 0) {
    set_memory(shape.omega, op, name, state.weights);
    check_memory(op, name, state.weights, q, shape.omega, state.keys.has_value());
    shape.sets = static_cast<int64_t>(count) - 1;
    shape.row = shape.omega.hidden;
  }
  if (!state.keys) return shape;
  const int64_t sequences = letters.sequences, heads = letters.heads, tail = letters.window - 1;
  check_floating(op, prefix + "keys", *state.keys);
  ATLAS_CHECK(state.keys->dim() == 4, op, prefix + "keys", "[N, capacity, H, K]",
              describe(*state.keys));
  shape.capacity = state.keys->size(1);
  check_floating_shape(op, prefix + "keys", *state.keys, q,
                       {sequences, shape.capacity, heads, letters.key}, "[N, capacity, H, K]");
  const size_t sets = static_cast<size_t>(shape.sets), last = count > 0 ? 1 : 0;
  check_count(op, prefix + "coefficients", state.coefficients, sets);
  check_rows(op, prefix + "coefficients", state.coefficients, shape, q);
  check_count(op, prefix + "chunk_weights", state.chunk_weights, sets + count);
  check_rows(op, prefix + "chunk_weights", state.chunk_weights, shape, q);
  if (count > 0)
    check_memory(op, prefix + "chunk_weights", after(state.chunk_weights, shape.sets), q,
                 shape.omega, true);
  if (!state.momentum.empty()) {
    check_count(op, prefix + "momentum", state.momentum, sets + last);
    check_rows(op, prefix + "momentum", state.momentum, shape, q);
    if (count > 0)
      check_sums(op, prefix + "momentum[" + std::to_string(sets) + "]", state.momentum.back(), q,
                 {sequences, heads, letters.value, shape.omega.hidden}, "[N, H, V, F]");
  }
  check_floating_shape(op, prefix + "k_tail", *state.k_tail, q,
                       {sequences, tail, heads, letters.key}, "[N, W-1, H, K]");
  check_floating_shape(op, prefix + "v_tail", *state.v_tail, q,
                       {sequences, tail, heads, letters.value}, "[N, W-1, H, V]");
  check_device(op, prefix + "position", *state.position, q);
  ATLAS_CHECK(state.position->scalar_type() == ScalarType::Long, op, prefix + "position", "int64",
              describe(*state.position));
  check_shape(op, prefix + "position", *state.position, {sequences}, "[N]");
  return shape;
}

// Everything that the schema gives forward and backward alike, checked.
inline ExpOmegaShape check_exp_omega_rule(const char* op, const ExpOmegaTokens& tokens,
                                          const ExpOmegaStateArguments& state,
                                          const MaybeTensor& cu_seqlens,
                                          const ExpOmegaRuleOptions& given) {
  const auto& [q, k, v, gamma, eta, log_alpha, log_theta] = tokens;
  check_tokens(op, "B, T, H", q, k, v, gamma, eta, log_alpha, log_theta);
  check_exp_options(op, given, q, v);
  check_cu_seqlens(op, cu_seqlens, q);
  const OmegaShape letters{
      q.size(0), q.size(1), q.size(2),     q.size(3),
      v.size(3), q.size(3), gamma.size(3), cu_seqlens ? cu_seqlens->numel() - 1 : q.size(0)};
  ExpOmegaShape shape = check_exp_state(op, state_prefix(state), letters, state, q);
  shape.chunks = checkpoints_of(shape.omega, given.chunk_size, state.position.has_value(),
                                cu_seqlens.has_value());
  shape.window_rows = std::min(given.chunk_size, letters.tokens) + letters.window - 1;
  return shape;
}

// Shapes of the list `saved`: rows, signals, reads, normalizers, weights, momentum; [0] where one
// is not needed.
inline std::vector<std::vector<int64_t>> saved_shapes(const ExpOmegaShape& shape,
                                                      const ExpOmegaRuleOptions& given,
                                                      bool momentum) {
  const OmegaShape& letters = shape.omega;
  const int64_t chunks = shape.chunks, heads = letters.heads, rows = shape.window_rows;
  const std::vector<int64_t> matrix{chunks, heads, letters.hidden, letters.value};
  std::vector<std::vector<int64_t>> shapes(6, {0});
  shapes[0] = {chunks, heads, rows, (momentum ? 2 : 1) * shape.sets, shape.row};
  if (given.objective == "l2" || shape.deep())
    shapes[1] = {chunks, heads, rows, shape.sets, shape.row};
  if (given.normalize != "none" || shape.deep())
    shapes[2] = {letters.batch, letters.tokens, heads, shape.sets, shape.row};
  if (given.normalize == "softmax") shapes[3] = {letters.batch, letters.tokens, heads};
  if (shape.deep()) shapes[4] = matrix;
  if (shape.deep() && momentum) shapes[5] = matrix;
  return shapes;
}

// The list `saved` as the backward gets it.
inline void check_saved(const char* op, const Tensors& saved, const ExpOmegaShape& shape,
                        const ExpOmegaRuleOptions& given, const Tensor& q, bool momentum) {
  const std::vector<std::vector<int64_t>> shapes = saved_shapes(shape, given, momentum);
  ATLAS_CHECK(saved.size() == shapes.size(), op, "saved", "what exp_omega_rule saved",
              std::to_string(saved.size()) + " tensors");
  for (size_t i = 0; i < saved.size(); ++i) {
    check_shape(op, "saved", saved[i], shapes[i], "what exp_omega_rule saved");
    ATLAS_CHECK(saved[i].is_contiguous() && saved[i].scalar_type() == compute_type(q), op, "saved",
                "contiguous " + dtype_name(compute_type(q)), describe(saved[i]));
  }
}

// Gradients of a final state's lists: each empty or whole.
inline void check_final_grads(const char* op, const ExpOmegaShape& shape,
                              const Tensors& coefficients, const Tensors& momentum,
                              const Tensors& weights, const Tensors& chunk_weights) {
  const size_t sets = static_cast<size_t>(shape.sets), matrices = shape.matrices();
  const auto check = [&](const char* name, const Tensors& grads, size_t wanted) {
    ATLAS_CHECK(grads.empty() || grads.size() == wanted, op, std::string("grad_") + name,
                "none, or one for each of " + std::to_string(wanted) + " tensors",
                std::to_string(grads.size()));
  };
  check("coefficients", coefficients, sets);
  check("momentum", momentum, sets + (matrices > 0 ? 1 : 0));
  check("weights", weights, matrices);
  check("chunk_weights", chunk_weights, sets + matrices);
}

// The same as the kernels' arguments have them; view(tensor, name) makes what these take.
template <class Args, class View>
void view_final_grads(Args& args, const ExpOmegaShape& shape, const Tensors& coefficients,
                      const Tensors& momentum, const Tensors& weights, const Tensors& chunk_weights,
                      const View& view) {
  const size_t sets = static_cast<size_t>(shape.sets), matrices = shape.matrices();
  for (size_t set = 0; set < sets; ++set) {
    if (!coefficients.empty())
      args.grad_final_coefficients[set] = view(coefficients[set], "grad_coefficients");
    if (!momentum.empty()) args.grad_final_momentum[set] = view(momentum[set], "grad_momentum");
    if (!chunk_weights.empty())
      args.grad_final_reference[set] = view(chunk_weights[set], "grad_chunk_weights");
  }
  for (size_t l = 0; l < weights.size(); ++l)
    args.grad_final_weights[l] = view(weights[l], "grad_weights");
  for (size_t l = 0; l < matrices && !chunk_weights.empty(); ++l)
    args.grad_final_chunk_weights[l] = view(chunk_weights[sets + l], "grad_chunk_weights");
  if (matrices > 0 && !momentum.empty())
    args.grad_final_weights_momentum = view(momentum.back(), "grad_momentum");
}

// Bits of grad_mask, in the order of the schema's inputs; the first seven are Wanted's.
enum ExpWanted : int64_t {
  kExpWeights = 1 << 7,
  kExpKeys = 1 << 8,
  kExpCoefficients = 1 << 9,
  kExpMomentum = 1 << 10,
  kExpChunkWeights = 1 << 11,
  kExpKTail = 1 << 12,
  kExpVTail = 1 << 13
};

}  // namespace atlas::ops
