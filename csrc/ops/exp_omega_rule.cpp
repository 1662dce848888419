#include <torch/csrc/stable/library.h>

#include "ops/exp_omega_rule_cpu.h"

namespace atlas::ops {
namespace {

namespace cpu = kernels::cpu;

constexpr const char* kOp = "exp_omega_rule";

// The positions after the call, for which the final state must have room.
void set_final_position(const Tensor& position, const cpu::OmegaInputs& in, int64_t capacity) {
  for (int64_t n = 0; n < in.num_sequences; ++n) {
    const cpu::OmegaSequence& sequence = in.sequences[n];
    const int64_t seen = sequence.position + sequence.end - sequence.begin;
    ATLAS_CHECK(seen <= capacity, kOp, "initial_state.length",
                "what makes room for all tokens, " + std::to_string(seen),
                "room for " + std::to_string(capacity));
    position.mutable_data_ptr<int64_t>()[n] = seen;
  }
}

ExpOmegaOutputs exp_omega_rule_cpu(
    const Tensor& q, const Tensor& k, const Tensor& v,  // [B, T, H, K], [B, T, H, K], [B, T, H, V]
    const Tensor& gamma, const Tensor& eta,             // [B, T, H, W], [B, T, H]
    const MaybeTensor& log_alpha, const MaybeTensor& log_theta,  // [B, T, H]
    const Tensors& weights,                                      // each [N, H, out, in]
    const MaybeTensor& keys, const Tensors& coefficients,        // each [N, capacity, H, .]
    const Tensors& momentum, const Tensors& chunk_weights, const MaybeTensor& k_tail,
    const MaybeTensor& v_tail,      // [N, W-1, H, K], [N, W-1, H, V]
    const MaybeTensor& position,    // [N]
    const MaybeTensor& cu_seqlens,  // [N + 1]
    const std::string& objective, const std::string& activation, bool residual,
    const std::string& normalize, double scale, int64_t chunk_size,
    std::optional<int64_t> extra_rows, bool save_for_backward, [[maybe_unused]] bool allow_tf32) {
  const ExpOmegaTokens tokens{q, k, v, gamma, eta, log_alpha, log_theta};
  const ExpOmegaStateArguments state{weights,       keys,   coefficients, momentum,
                                     chunk_weights, k_tail, v_tail,       position};
  const ExpOmegaRuleOptions given{objective, activation, residual, normalize, scale, chunk_size};
  const ExpOmegaCall call(kOp, tokens, state, cu_seqlens, given);
  const OmegaShape& letters = call.shape.omega;
  cpu::ExpOmegaForward args{};
  args.options = call.options;
  args.in = call.in;
  ExpOmegaOutputs result = new_exp_outputs(args, tokens, state, call.shape, extra_rows,
                                           compute_type(q), new_kernel_result);
  if (extra_rows) set_final_position(std::get<8>(result), args.in.omega, args.capacity);
  if (save_for_backward) {
    std::get<9>(result) = new_saved(call.shape, given, q, log_theta.has_value(), compute_type(q));
    args.saved = call.saved(std::get<9>(result));
  }
  if (letters.sequences * letters.heads == 0) return result;
  const cpu::ParallelFor parallel = torch_threads();
  const Tensor memory = scratch(
      q, cpu::exp_omega_rule_scratch(cpu::ExpOmegaPass::forward, args.options, args.in, parallel));
  args.scratch = memory.mutable_data_ptr();
  cpu::exp_omega_rule(args, parallel);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CPU, library) {
  library.impl("exp_omega_rule", TORCH_BOX(&exp_omega_rule_cpu));
}

}  // namespace atlas::ops
