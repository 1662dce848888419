#include "ops/exp_omega_rule.h"

namespace atlas::ops {
namespace {

namespace cpu = kernels::cpu;

cpu::Normalize normalize_of(const std::string& name) {
  return name == "softmax" ? cpu::Normalize::softmax
         : name == "rms"   ? cpu::Normalize::rms
                           : cpu::Normalize::none;
}

void check_count(const char* op, const std::string& name, const Tensors& tensors, size_t wanted) {
  ATLAS_CHECK(tensors.size() == wanted, op, name, std::to_string(wanted) + " tensors",
              std::to_string(tensors.size()) + " tensors");
}

// Rows of a state: one tensor for each set.
void check_rows(const char* op, const std::string& name, const Tensors& tensors,
                const ExpOmegaShape& shape, const Tensor& q) {
  for (int64_t set = 0; set < shape.sets; ++set) {
    const Tensor& rows = tensors[set];
    const std::string field = name + "[" + std::to_string(set) + "]";
    check_device(op, field, rows, q);
    ATLAS_CHECK(rows.scalar_type() == compute_type(q), op, field, dtype_name(compute_type(q)),
                describe(rows));
    check_shape(op, field, rows,
                {shape.omega.sequences, shape.capacity, shape.omega.heads, shape.row},
                "[N, capacity, H, V or F]");
  }
}

Tensors after(const Tensors& tensors, int64_t first) {
  return Tensors(tensors.begin() + first, tensors.end());
}

void check_floating_shape(const char* op, const std::string& name, const Tensor& tensor,
                          const Tensor& q, const std::vector<int64_t>& shape, const char* letters) {
  check_device(op, name, tensor, q);
  check_floating(op, name, tensor);
  check_shape(op, name, tensor, shape, letters);
}

}  // namespace

void check_exp_options(const char* op, const ExpOmegaRuleOptions& given, const Tensor& q,
                       const Tensor& v) {
  const std::string schedule = "muon", scale = "none";
  check_options(op,
                {given.objective, given.activation, given.residual, 0, 0, schedule, scale, 1,
                 given.chunk_size},
                std::nullopt, std::nullopt, q, v);
  ATLAS_CHECK(given.normalize == "none" || given.normalize == "softmax" || given.normalize == "rms",
              op, "normalize", "'none', 'softmax' or 'rms'", "'" + given.normalize + "'");
}

ExpOmegaShape check_exp_state(const char* op, const std::string& prefix, const OmegaShape& letters,
                              const ExpOmegaStateArguments& state, const Tensor& q) {
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
      check_floating_shape(op, prefix + "momentum[" + std::to_string(sets) + "]",
                           state.momentum.back(), q,
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

cpu::ExpOmegaOptions exp_options(const ExpOmegaShape& shape, const ExpOmegaRuleOptions& given,
                                 const Tensor& q) {
  const std::string schedule = "muon", scale = "none";
  const OmegaCpuOptions held(shape.omega,
                             {given.objective, given.activation, given.residual, 0, 0, schedule,
                              scale, 1, given.chunk_size},
                             std::nullopt, std::nullopt, compute_type(q));
  cpu::ExpOmegaOptions options{held.options, normalize_of(given.normalize), given.scale};
  options.omega.roots = nullptr;  // of the polynomial map and of Newton-Schulz: there is neither
  options.omega.ns.table = nullptr;
  return options;
}

void exp_state_views(cpu::ExpOmegaInputs& in, const ExpOmegaShape& shape,
                     const ExpOmegaStateArguments& state) {
  const size_t sets = static_cast<size_t>(shape.sets), matrices = shape.matrices();
  strided_each(in.omega.weights, state.weights);
  in.keys = strided(state.keys);
  in.omega.k_tail = strided(state.k_tail);
  in.omega.v_tail = strided(state.v_tail);
  if (!state.keys) return;
  for (size_t set = 0; set < sets; ++set) {
    in.coefficients[set] = strided(state.coefficients[set]);
    in.reference[set] = strided(state.chunk_weights[set]);
    if (!state.momentum.empty()) in.momentum[set] = strided(state.momentum[set]);
  }
  for (size_t l = 0; l < matrices; ++l)
    in.omega.chunk_weights[l] = strided(state.chunk_weights[sets + l]);
  if (matrices > 0 && !state.momentum.empty())
    in.omega.momentum[matrices - 1] = strided(state.momentum.back());
}

ExpOmegaCall::ExpOmegaCall(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
                           const Tensor& gamma, const Tensor& eta, const MaybeTensor& log_alpha,
                           const MaybeTensor& log_theta, const ExpOmegaStateArguments& state,
                           const MaybeTensor& cu_seqlens, const ExpOmegaRuleOptions& given) {
  check_tokens(op, "B, T, H", q, k, v, gamma, eta, log_alpha, log_theta);
  check_exp_options(op, given, q, v);
  check_cu_seqlens(op, cu_seqlens, q);
  const OmegaShape letters{
      q.size(0), q.size(1), q.size(2),     q.size(3),
      v.size(3), q.size(3), gamma.size(3), cu_seqlens ? cu_seqlens->numel() - 1 : q.size(0)};
  shape = check_exp_state(op, state.keys ? "initial_state." : "", letters, state, q);
  options = exp_options(shape, given, q);
  chunks = checkpoints_of(shape.omega, given.chunk_size, state.position.has_value(),
                          cu_seqlens.has_value());
  window_rows = std::min(given.chunk_size, letters.tokens) + letters.window - 1;
  sequences_ = sequences_of(op, shape.omega, given.chunk_size, state.position, cu_seqlens);
  for (const cpu::OmegaSequence& sequence : sequences_)
    ATLAS_CHECK(!state.keys || sequence.position <= shape.capacity, op, "initial_state.position",
                "tokens seen, at most the capacity " + std::to_string(shape.capacity),
                std::to_string(sequence.position));
  in.omega.q = strided(q);
  in.omega.k = strided(k);
  in.omega.v = strided(v);
  in.omega.gamma = strided(gamma);
  in.omega.eta = strided(eta);
  in.omega.log_alpha = strided(log_alpha);
  in.omega.log_theta = strided(log_theta);
  exp_state_views(in, shape, state);
  in.omega.sequences = sequences_.data();
  in.omega.num_sequences = shape.omega.sequences;
  in.omega.tokens = shape.omega.tokens;
}

std::vector<std::vector<int64_t>> ExpOmegaCall::saved_shapes() const {
  const OmegaShape& letters = shape.omega;
  const int64_t heads = letters.heads, parts = shape.sets * (in.omega.log_theta ? 2 : 1);
  const std::vector<int64_t> matrix{chunks, heads, letters.hidden, letters.value};
  const bool momentum = static_cast<bool>(in.omega.log_theta);
  std::vector<std::vector<int64_t>> shapes(6, {0});
  shapes[0] = {chunks, heads, window_rows, parts, shape.row};
  if (options.reads_window()) shapes[1] = {chunks, heads, window_rows, shape.sets, shape.row};
  if (options.keeps_reads())
    shapes[2] = {letters.batch, letters.tokens, heads, shape.sets, shape.row};
  if (options.normalize == cpu::Normalize::softmax)
    shapes[3] = {letters.batch, letters.tokens, heads};
  if (shape.deep()) shapes[4] = matrix;
  if (shape.deep() && momentum) shapes[5] = matrix;
  return shapes;
}

cpu::ExpOmegaSaved ExpOmegaCall::saved(const Tensors& tensors) const {
  const std::vector<std::vector<int64_t>> shapes = saved_shapes();
  void* data[6] = {};
  for (size_t i = 0; i < tensors.size(); ++i)
    if (shapes[i].size() > 1) data[i] = tensors[i].mutable_data_ptr();
  return {window_rows, data[0], data[1], data[2], data[3], data[4], data[5]};
}

}  // namespace atlas::ops
