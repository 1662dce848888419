#include <torch/csrc/stable/library.h>

#include "kernels/cpu/omega_update.h"
#include "ops/omega_rule_cpu.h"

namespace atlas::ops {
namespace {

namespace cpu = kernels::cpu;

constexpr const char* kOp = "omega_rule_update";

cpu::StridedState state_view(const char* name, const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  ATLAS_CHECK(tensor.numel() == 0 || tensor.size(last) == 1 || tensor.stride(last) == 1, kOp,
              std::string("state.") + name, "stride 1 along the last dimension",
              "stride " + std::to_string(tensor.stride(last)));
  cpu::StridedState view;
  view.array = mutable_array(tensor);
  view.present = true;
  for (int64_t i = 0; i <= last; ++i) view.stride[i] = tensor.stride(i);
  return view;
}

// The slot of every row: in order without indices, else checked to lie in [0, N) and to occur once.
std::vector<int64_t> slots_of(const MaybeTensor& indices, int64_t rows, int64_t sequences,
                              const Tensor& q) {
  std::vector<int64_t> slots(rows);
  if (!indices) {
    ATLAS_CHECK(rows == sequences, kOp, "q", "[M, H, K] with M = N = " + std::to_string(sequences),
                describe(q));
    for (int64_t m = 0; m < rows; ++m) slots[m] = m;
    return slots;
  }
  check_device(kOp, "state_indices", *indices, q);
  ATLAS_CHECK(
      indices->scalar_type() == ScalarType::Long || indices->scalar_type() == ScalarType::Int, kOp,
      "state_indices", "int32 or int64 [M]", describe(*indices));
  check_shape(kOp, "state_indices", *indices, {rows}, "[M]");
  const Tensor wide = torch::stable::contiguous(torch::stable::to(*indices, ScalarType::Long));
  std::vector<bool> taken(sequences, false);
  for (int64_t m = 0; m < rows; ++m) {
    slots[m] = wide.const_data_ptr<int64_t>()[m];
    ATLAS_CHECK(slots[m] >= 0 && slots[m] < sequences, kOp, "state_indices",
                "slots from 0 to " + std::to_string(sequences - 1), std::to_string(slots[m]));
    ATLAS_CHECK(!taken[slots[m]], kOp, "state_indices", "every slot at most once",
                "slot " + std::to_string(slots[m]) + " twice");
    taken[slots[m]] = true;
  }
  return slots;
}

Tensor omega_rule_update_cpu(
    const Tensor& q, const Tensor& k, const Tensor& v,           // [M, H, K], [M, H, K], [M, H, V]
    const Tensor& gamma, const Tensor& eta,                      // [M, H, W], [M, H]
    const MaybeTensor& log_alpha, const MaybeTensor& log_theta,  // [M, H]
    const Tensors& weights, const Tensors& momentum,
    const Tensors& chunk_weights,                // each [N, H, out, in]
    const Tensor& k_tail, const Tensor& v_tail,  // [N, W-1, H, K], [N, W-1, H, V]
    const Tensor& position,                      // [N]
    const MaybeTensor& state_indices,            // [M]
    const MaybeTensor& feature_scales,           // [degree + 1]
    const MaybeTensor& ns_table,                 // [ns_steps, 3]
    const std::string& objective, const std::string& activation, bool residual, int64_t degree,
    int64_t ns_steps, const std::string& ns_schedule, const std::string& ns_scale, int64_t ns_every,
    int64_t chunk_size, [[maybe_unused]] bool allow_tf32) {
  const OmegaRuleOptions given{objective,   activation, residual, degree,    ns_steps,
                               ns_schedule, ns_scale,   ns_every, chunk_size};
  check_tokens(kOp, "M, H", q, k, v, gamma, eta, log_alpha, log_theta);
  check_options(kOp, given, ns_table, feature_scales, q, v);
  ATLAS_CHECK(position.dim() == 1, kOp, "state.position", "int64 [N]", describe(position));
  OmegaShape shape{1,
                   q.size(0),
                   q.size(1),
                   q.size(2),
                   v.size(2),
                   features_of(q.size(2), degree),
                   gamma.size(2),
                   position.size(0)};
  set_memory(shape, kOp, "state.weights", weights);
  check_memory(kOp, "state.weights", weights, q, shape, true);
  check_state(kOp, "state.", momentum, chunk_weights, k_tail, v_tail, position, q, shape);
  ATLAS_CHECK(
      momentum.empty() == !log_theta, kOp, "log_theta",
      momentum.empty() ? "None: the state has no momentum" : "a tensor: the state has a momentum",
      log_theta ? describe(*log_theta) : "None");
  const std::vector<int64_t> slots = slots_of(state_indices, shape.tokens, shape.sequences, q);
  std::vector<int64_t> positions(shape.tokens);
  int64_t* const counter = position.mutable_data_ptr<int64_t>();
  for (int64_t m = 0; m < shape.tokens; ++m) {
    positions[m] = counter[slots[m] * position.stride(0)];
    ATLAS_CHECK(positions[m] >= 0, kOp, "state.position", "tokens seen, >= 0",
                std::to_string(positions[m]));
  }

  const Tensor o = torch::stable::new_empty(v, {shape.tokens, shape.heads, shape.value});
  if (shape.tokens == 0) return o;
  const OmegaCpuOptions held(shape, given, feature_scales, ns_table, compute_type(q));
  cpu::OmegaUpdate args{};
  args.options = held.options;
  args.q = strided(q);
  args.k = strided(k);
  args.v = strided(v);
  args.gamma = strided(gamma);
  args.eta = strided(eta);
  args.log_alpha = strided(log_alpha);
  args.log_theta = strided(log_theta);
  for (size_t l = 0; l < weights.size(); ++l) {
    args.weights[l] = state_view("weights", weights[l]);
    if (log_theta) args.momentum[l] = state_view("momentum", momentum[l]);
    args.chunk_weights[l] = state_view("chunk_weights", chunk_weights[l]);
  }
  args.k_tail = state_view("k_tail", k_tail);
  args.v_tail = state_view("v_tail", v_tail);
  args.slots = slots.data();
  args.positions = positions.data();
  args.o = mutable_array(o);
  args.rows = shape.tokens;
  if (shape.heads > 0) {
    const cpu::ParallelFor parallel = torch_threads();
    const Tensor memory = scratch(q, cpu::omega_update_scratch(args, parallel));
    args.scratch = memory.mutable_data_ptr();
    cpu::omega_update(args, parallel);
  }
  for (int64_t m = 0; m < shape.tokens; ++m) counter[slots[m] * position.stride(0)] += 1;
  return o;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CPU, library) {
  library.impl("omega_rule_update", TORCH_BOX(&omega_rule_update_cpu));
}

}  // namespace atlas::ops
