#include <torch/csrc/stable/library.h>

#include "ops/omega_rule_cpu.h"

namespace atlas::ops {
namespace {

namespace cpu = kernels::cpu;

void set_final_position(const Tensor& position, const cpu::OmegaInputs& in) {
  for (int64_t n = 0; n < in.num_sequences; ++n) {
    const cpu::OmegaSequence& sequence = in.sequences[n];
    position.mutable_data_ptr<int64_t>()[n] = sequence.position + sequence.end - sequence.begin;
  }
}

// Checkpoints are as many as shapes allow; an output must not hold the memory that no chunk wrote.
void zero_unwritten(const Tensor& checkpoints, const cpu::OmegaInputs& in, int64_t chunk) {
  for (int64_t n = 0; n < in.num_sequences; ++n) {
    const cpu::OmegaSequence& sequence = in.sequences[n];
    const int64_t length = sequence.end - sequence.begin;
    const int64_t written = length == 0 ? 0 : (sequence.position % chunk + length - 1) / chunk + 1;
    const int64_t first = sequence.first_checkpoint + written;
    const int64_t end =
        n + 1 < in.num_sequences ? in.sequences[n + 1].first_checkpoint : checkpoints.size(0);
    if (first < end) {
      Tensor rest = checkpoints;
      rest = torch::stable::narrow(rest, 0, first, end - first);
      torch::stable::zero_(rest);
    }
  }
}

OmegaOutputs omega_rule_cpu(const Tensor& q, const Tensor& k,
                            const Tensor& v,  // [B, T, H, K], [B, T, H, K], [B, T, H, V]
                            const Tensor& gamma, const Tensor& eta,  // [B, T, H, W], [B, T, H]
                            const MaybeTensor& log_alpha,
                            const MaybeTensor& log_theta,  // [B, T, H]
                            const Tensors& weights, const Tensors& momentum,
                            const Tensors& chunk_weights,  // each [N, H, out, in]
                            const MaybeTensor& k_tail,
                            const MaybeTensor& v_tail,          // [N, W-1, H, K], [N, W-1, H, V]
                            const MaybeTensor& position,        // [N]
                            const MaybeTensor& feature_scales,  // [degree + 1]
                            const MaybeTensor& ns_table,        // [ns_steps, 3]
                            const MaybeTensor& cu_seqlens,      // [N + 1]
                            const std::string& objective, const std::string& activation,
                            bool residual, int64_t degree, int64_t ns_steps,
                            const std::string& ns_schedule, const std::string& ns_scale,
                            int64_t ns_every, int64_t chunk_size, bool output_final_state,
                            bool save_checkpoints, [[maybe_unused]] bool allow_tf32) {
  const OmegaCall call("omega_rule", q, k, v, gamma, eta, log_alpha, log_theta, weights, momentum,
                       chunk_weights, k_tail, v_tail, position, feature_scales, ns_table,
                       cu_seqlens,
                       {objective, activation, residual, degree, ns_steps, ns_schedule, ns_scale,
                        ns_every, chunk_size});
  const OmegaShape& shape = call.shape;
  cpu::OmegaForward args{};
  args.options = call.options();
  args.in = call.in;
  const OmegaGiven given{q,         k,       v,        gamma,         eta,    log_alpha,
                         log_theta, weights, momentum, chunk_weights, k_tail, v_tail};
  OmegaOutputs result =
      new_outputs(args, given, shape, {output_final_state, save_checkpoints, call.checkpoints},
                  compute_type(q), new_kernel_result);
  if (output_final_state) set_final_position(std::get<6>(result), call.in);
  for (const Tensor& saved : std::get<7>(result))
    zero_unwritten(saved, call.in, args.options.chunk_size);
  if (shape.sequences * shape.heads == 0) return result;
  const cpu::ParallelFor parallel = torch_threads();
  const Tensor memory = scratch(q, cpu::omega_rule_scratch(args.options, args.in, false, parallel));
  args.scratch = memory.mutable_data_ptr();
  cpu::omega_rule(args, parallel);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CPU, library) {
  library.impl("omega_rule", TORCH_BOX(&omega_rule_cpu));
}

}  // namespace atlas::ops
