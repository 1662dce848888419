#include "ops/omega_rule_update.h"

#include <torch/csrc/stable/library.h>

#include "kernels/cpu/omega_update.h"
#include "ops/omega_rule_cpu.h"

namespace atlas::ops {
namespace {

namespace cpu = kernels::cpu;

constexpr const char* kOp = "omega_rule_update";

cpu::StridedState state_view(const Tensor& tensor) {
  cpu::StridedState view;
  view.array = mutable_array(tensor);
  view.present = true;
  for (int64_t i = 0; i < tensor.dim(); ++i) view.stride[i] = tensor.stride(i);
  return view;
}

// The slot of every row: in order without indices, else checked to lie in [0, N) and to occur once.
std::vector<int64_t> slots_of(const MaybeTensor& indices, int64_t rows, int64_t sequences) {
  std::vector<int64_t> slots(rows);
  if (!indices) {
    for (int64_t m = 0; m < rows; ++m) slots[m] = m;
    return slots;
  }
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
  const OmegaShape shape = check_omega_rule_update(
      kOp, q, k, v, gamma, eta, log_alpha, log_theta, weights, momentum, chunk_weights, k_tail,
      v_tail, position, state_indices, feature_scales, ns_table, given);
  const std::vector<int64_t> slots = slots_of(state_indices, shape.tokens, shape.sequences);
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
    args.weights[l] = state_view(weights[l]);
    if (log_theta) args.momentum[l] = state_view(momentum[l]);
    args.chunk_weights[l] = state_view(chunk_weights[l]);
  }
  args.k_tail = state_view(k_tail);
  args.v_tail = state_view(v_tail);
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
