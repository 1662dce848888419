#pragma once
// Arguments of the omega rule's operators, checked: what forward, backward and update share on
// every device.
#include <optional>
#include <string>
#include <vector>

#include "ops/check.h"
#include "ops/newton_schulz_options.h"
#include "ops/poly_scales.h"

namespace atlas::ops {

using Tensors = std::vector<Tensor>;
using MaybeTensor = std::optional<Tensor>;

// The options in the order of the schemas.
struct OmegaRuleOptions {
  const std::string& objective;
  const std::string& activation;
  bool residual;
  int64_t degree, ns_steps;
  const std::string& ns_schedule;
  const std::string& ns_scale;
  int64_t ns_every, chunk_size;
};

// Letters as in the documentation; N is the number of sequences (or of memory slots).
struct OmegaShape {
  int64_t batch, tokens, heads, key, value, features, window, sequences;
  int64_t hidden = 0;    // F; 0 for a linear memory
  int64_t matrices = 1;  // (W,), (W1, W2) or (W1, W3, W2)
};

// {out, in} of matrix `index`: [V, D], or [F, D] of W1 and W3 and [V, F] of W2.
inline std::vector<int64_t> matrix_shape(const OmegaShape& shape, int64_t index) {
  if (shape.matrices == 1) return {shape.value, shape.features};
  if (index + 1 < shape.matrices) return {shape.hidden, shape.features};
  return {shape.value, shape.hidden};
}

// Which memory the tokens meet; the shapes of its matrices are check_memory's business.
inline void set_memory(OmegaShape& shape, const char* op, const std::string& name,
                       const Tensors& weights) {
  ATLAS_CHECK(weights.size() >= 1 && weights.size() <= 3, op, name,
              "1, 2 or 3 matrices: (W,) linear, (W1, W2) mlp or (W1, W3, W2) gated mlp",
              std::to_string(weights.size()) + " matrices");
  shape.matrices = static_cast<int64_t>(weights.size());
  shape.hidden = 0;
  if (shape.matrices == 1) return;
  const Tensor& first = weights[0];
  ATLAS_CHECK(first.dim() == 4 && first.size(2) >= 1, op, name + "[0]", "[N, H, F, D] with F >= 1",
              describe(first));
  shape.hidden = first.size(2);
}

inline void check_options(const char* op, const OmegaRuleOptions& options,
                          const MaybeTensor& ns_table, const MaybeTensor& feature_scales,
                          const Tensor& q, const Tensor& v) {
  ATLAS_CHECK(options.objective == "l2" || options.objective == "dot", op, "objective",
              "'l2' or 'dot'", "'" + options.objective + "'");
  ATLAS_CHECK(options.activation == "gelu" || options.activation == "silu" ||
                  options.activation == "identity",
              op, "activation", "'gelu', 'silu' or 'identity'", "'" + options.activation + "'");
  ATLAS_CHECK(options.ns_steps >= 0, op, "ns_steps", "an integer >= 0",
              std::to_string(options.ns_steps));
  ATLAS_CHECK(options.ns_every >= 1, op, "ns_every", "an integer >= 1",
              std::to_string(options.ns_every));
  ATLAS_CHECK(options.chunk_size >= 1, op, "chunk_size", "an integer >= 1",
              std::to_string(options.chunk_size));
  if (ns_table) check_device(op, "ns_schedule", *ns_table, q);
  check_schedule(op, "ns_schedule", ns_table, options.ns_schedule, options.ns_steps);
  check_ns_scale(op, "ns_scale", options.ns_scale);
  check_degree(op, options.degree, q.size(q.dim() - 1), 0);
  ATLAS_CHECK(options.degree > 0 || !feature_scales, op, "feature_scales",
              "None where degree is None", describe(*feature_scales));
  check_scales(op, "feature_scales", feature_scales, options.degree, q);
  const int64_t key = q.size(q.dim() - 1), value = v.size(v.dim() - 1);
  ATLAS_CHECK(!options.residual || key == value, op, "residual", "False where K != V",
              "True with K = " + std::to_string(key) + ", V = " + std::to_string(value));
}

inline int64_t features_of(int64_t key_dim, int64_t degree) {
  return degree == 0 ? key_dim : kernels::cpu::poly_feature_dim(key_dim, static_cast<int>(degree));
}

// One gate or scalar per token: the leading dimensions of q and, for gamma, the window.
inline void check_gate(const char* op, const char* name, const Tensor& gate, const Tensor& q,
                       const std::vector<int64_t>& shape, const char* letters) {
  check_device(op, name, gate, q);
  check_floating(op, name, gate);
  check_dtype_beside(op, name, gate, q);
  check_shape(op, name, gate, shape, letters);
}

// Checks everything that comes per token; `lead` spells the leading dimensions, "B, T, H",
// "M, H" or "N, H".
inline void check_tokens(const char* op, const std::string& lead, const Tensor& q, const Tensor& k,
                         const Tensor& v, const Tensor& gamma, const Tensor& eta,
                         const MaybeTensor& log_alpha, const MaybeTensor& log_theta) {
  const int64_t rank = lead == "B, T, H" ? 4 : 3;
  const auto letters = [&](const char* width) { return "[" + lead + ", " + width + "]"; };
  check_floating(op, "q", q);
  ATLAS_CHECK(q.dim() == rank && q.size(rank - 1) >= 1, op, "q", letters("K") + " with K >= 1",
              describe(q));
  std::vector<int64_t> shape(q.sizes().begin(), q.sizes().end());
  for (const auto& [name, tensor, width] :
       {std::tuple<const char*, const Tensor&, const char*>{"k", k, "K"}, {"v", v, "V"}}) {
    check_device(op, name, tensor, q);
    ATLAS_CHECK(tensor.scalar_type() == q.scalar_type(), op, name,
                "q's dtype " + dtype_name(q.scalar_type()), describe(tensor));
    ATLAS_CHECK(tensor.dim() == rank && tensor.size(rank - 1) >= 1, op, name,
                letters(width) + " with " + width + " >= 1", describe(tensor));
    if (*width == 'V') shape.back() = tensor.size(rank - 1);
    check_shape(op, name, tensor, shape, letters(width).c_str());
  }
  ATLAS_CHECK(gamma.dim() == rank && gamma.size(rank - 1) >= 1, op, "gamma",
              letters("W") + " with W >= 1", describe(gamma));
  shape.back() = gamma.size(rank - 1);
  check_gate(op, "gamma", gamma, q, shape, letters("W").c_str());
  shape.pop_back();
  check_gate(op, "eta", eta, q, shape, ("[" + lead + "]").c_str());
  if (log_alpha) check_gate(op, "log_alpha", *log_alpha, q, shape, ("[" + lead + "]").c_str());
  if (log_theta) check_gate(op, "log_theta", *log_theta, q, shape, ("[" + lead + "]").c_str());
}

// `matrices` are the weights that set_memory saw, or a state's tensors that match them.
inline void check_memory(const char* op, const std::string& name, const Tensors& matrices,
                         const Tensor& q, const OmegaShape& shape, bool state) {
  const auto count = static_cast<int64_t>(matrices.size());
  ATLAS_CHECK(count == shape.matrices, op, name,
              "as many matrices as weights, " + std::to_string(shape.matrices),
              std::to_string(count) + " matrices");
  for (int64_t i = 0; i < count; ++i) {
    const Tensor& matrix = matrices[i];
    const std::string argument = count == 1 ? name : name + "[" + std::to_string(i) + "]";
    check_device(op, argument, matrix, q);
    check_floating(op, argument, matrix);
    if (state)
      ATLAS_CHECK(matrix.scalar_type() == compute_type(q), op, argument,
                  dtype_name(compute_type(q)), describe(matrix));
    check_dtype_beside(op, argument, matrix, q);
    const std::vector<int64_t> sizes = matrix_shape(shape, i);
    check_shape(op, argument, matrix, {shape.sequences, shape.heads, sizes[0], sizes[1]},
                count == 1       ? "[N, H, V, D]"
                : i + 1 == count ? "[N, H, V, F]"
                                 : "[N, H, F, D]");
  }
}

// The tensors of a state, after the tokens; `prefix` is how the caller names the state.
inline void check_state(const char* op, const std::string& prefix, const Tensors& momentum,
                        const Tensors& chunk_weights, const Tensor& k_tail, const Tensor& v_tail,
                        const Tensor& position, const Tensor& q, const OmegaShape& shape) {
  if (!momentum.empty()) check_memory(op, prefix + "momentum", momentum, q, shape, true);
  check_memory(op, prefix + "chunk_weights", chunk_weights, q, shape, true);
  check_device(op, prefix + "k_tail", k_tail, q);
  check_device(op, prefix + "v_tail", v_tail, q);
  check_floating(op, prefix + "k_tail", k_tail);
  check_floating(op, prefix + "v_tail", v_tail);
  check_shape(op, prefix + "k_tail", k_tail,
              {shape.sequences, shape.window - 1, shape.heads, shape.key}, "[N, W-1, H, K]");
  check_shape(op, prefix + "v_tail", v_tail,
              {shape.sequences, shape.window - 1, shape.heads, shape.value}, "[N, W-1, H, V]");
  check_device(op, prefix + "position", position, q);
  ATLAS_CHECK(position.scalar_type() == ScalarType::Long, op, prefix + "position", "int64",
              describe(position));
  check_shape(op, prefix + "position", position, {shape.sequences}, "[N]");
}

inline void check_cu_seqlens(const char* op, const MaybeTensor& cu_seqlens, const Tensor& q) {
  if (!cu_seqlens) return;
  check_device(op, "cu_seqlens", *cu_seqlens, q);
  const ScalarType type = cu_seqlens->scalar_type();
  ATLAS_CHECK((type == ScalarType::Int || type == ScalarType::Long) && cu_seqlens->dim() == 1 &&
                  cu_seqlens->numel() >= 1,
              op, "cu_seqlens", "int32 or int64 [N+1]", describe(*cu_seqlens));
  ATLAS_CHECK(q.size(0) == 1, op, "q", "[B, T, H, K] with B = 1 beside cu_seqlens", describe(q));
}

// Everything that the schema gives forward and backward alike, checked.
inline OmegaShape check_omega_rule(const char* op, const Tensor& q, const Tensor& k,
                                   const Tensor& v, const Tensor& gamma, const Tensor& eta,
                                   const MaybeTensor& log_alpha, const MaybeTensor& log_theta,
                                   const Tensors& weights, const Tensors& momentum,
                                   const Tensors& chunk_weights, const MaybeTensor& k_tail,
                                   const MaybeTensor& v_tail, const MaybeTensor& position,
                                   const MaybeTensor& feature_scales, const MaybeTensor& ns_table,
                                   const MaybeTensor& cu_seqlens, const OmegaRuleOptions& given) {
  check_tokens(op, "B, T, H", q, k, v, gamma, eta, log_alpha, log_theta);
  check_options(op, given, ns_table, feature_scales, q, v);
  check_cu_seqlens(op, cu_seqlens, q);
  OmegaShape shape{q.size(0),     q.size(1),
                   q.size(2),     q.size(3),
                   v.size(3),     features_of(q.size(3), given.degree),
                   gamma.size(3), cu_seqlens ? cu_seqlens->numel() - 1 : q.size(0)};
  const bool has_state = !chunk_weights.empty();
  ATLAS_CHECK(k_tail.has_value() == has_state && v_tail.has_value() == has_state &&
                  position.has_value() == has_state,
              op, "initial_state", "chunk_weights, k_tail, v_tail and position, or none of them",
              "some of them");
  const char* name = has_state ? "initial_state.weights" : "weights";
  set_memory(shape, op, name, weights);
  check_memory(op, name, weights, q, shape, has_state);
  if (has_state)
    check_state(op, "initial_state.", momentum, chunk_weights, *k_tail, *v_tail, *position, q,
                shape);
  return shape;
}

// Checkpoints of a call: an upper bound that follows from shapes alone. A sequence that starts in
// mid-chunk has one chunk more than its length alone tells.
inline int64_t checkpoints_of(const OmegaShape& shape, int64_t chunk, bool has_position,
                              bool packed) {
  const int64_t extra = has_position ? 1 : 0;
  const int64_t whole = shape.tokens / chunk;
  if (packed) return whole + shape.sequences * (1 + extra);
  return shape.sequences * (whole + (shape.tokens % chunk != 0) + extra);
}

// Shapes of the list that omega_rule returned with save_checkpoints.
inline void check_checkpoints(const char* op, const Tensors& checkpoints, const OmegaShape& shape,
                              int64_t count, bool momentum, ScalarType sums) {
  const auto matrices = static_cast<size_t>(shape.matrices);
  ATLAS_CHECK(checkpoints.size() == (momentum ? 2 : 1) * matrices, op, "checkpoints",
              "what omega_rule returned with save_checkpoints",
              std::to_string(checkpoints.size()) + " tensors");
  for (size_t i = 0; i < checkpoints.size(); ++i) {
    const Tensor& checkpoint = checkpoints[i];
    const std::vector<int64_t> sizes = matrix_shape(shape, static_cast<int64_t>(i % matrices));
    check_shape(op, "checkpoints", checkpoint, {count, shape.heads, sizes[1], sizes[0]},
                "[checkpoints, H, in, out]");
    ATLAS_CHECK(checkpoint.is_contiguous() && checkpoint.scalar_type() == sums, op, "checkpoints",
                "contiguous " + dtype_name(sums), describe(checkpoint));
  }
}

inline void check_state_grads(const char* op, const Tensors& weights, const Tensors& momentum,
                              const Tensors& chunk_weights, const OmegaShape& shape) {
  for (const auto& [name, grads] : {std::pair<const char*, const Tensors&>{"weights", weights},
                                    {"momentum", momentum},
                                    {"chunk_weights", chunk_weights}})
    ATLAS_CHECK(grads.empty() || static_cast<int64_t>(grads.size()) == shape.matrices, op,
                std::string("grad_") + name,
                "none, or one for each of " + std::to_string(shape.matrices) + " matrices",
                std::to_string(grads.size()));
}

// Bits of grad_mask, in the order of the schema's inputs.
enum Wanted : int64_t {
  kQ = 1,
  kK = 2,
  kV = 4,
  kGamma = 8,
  kEta = 16,
  kLogAlpha = 32,
  kLogTheta = 64,
  kWeights = 128,
  kMomentum = 256,
  kChunkWeights = 512,
  kKTail = 1024,
  kVTail = 2048,
  kScales = 4096
};

}  // namespace atlas::ops
