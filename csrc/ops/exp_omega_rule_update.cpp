#include "ops/exp_omega_rule_update.h"

#include <torch/csrc/stable/library.h>

#include "ops/exp_omega_rule_cpu.h"

namespace atlas::ops {
namespace {

namespace cpu = kernels::cpu;

constexpr const char* kOp = "exp_omega_rule_update";

cpu::StateView state_view(const Tensor& tensor) {
  cpu::StateView view;
  view.array = mutable_array(tensor);
  for (int64_t i = 0; i < tensor.dim(); ++i) view.stride[i] = tensor.stride(i);
  return view;
}

// One token's tensor [N, H, .] as [N, 1, H, .].
cpu::Strided one_token(const MaybeTensor& tensor) {
  cpu::Strided view = strided(tensor);
  for (int i = 3; i > 1; --i) view.stride[i] = view.stride[i - 1];
  view.stride[1] = 0;
  return view;
}

void view_state(cpu::ExpOmegaUpdate& args, const ExpOmegaShape& shape,
                const ExpOmegaStateArguments& state) {
  const size_t sets = static_cast<size_t>(shape.sets), matrices = shape.matrices();
  args.keys = state_view(*state.keys);
  for (size_t set = 0; set < sets; ++set) {
    args.coefficients[set] = state_view(state.coefficients[set]);
    args.reference[set] = state_view(state.chunk_weights[set]);
    if (!state.momentum.empty()) args.momentum[set] = state_view(state.momentum[set]);
  }
  for (size_t l = 0; l < matrices; ++l) {
    args.weights[l] = state_view(state.weights[l]);
    args.chunk_weights[l] = state_view(state.chunk_weights[sets + l]);
  }
  if (matrices > 0 && !state.momentum.empty())
    args.weights_momentum = state_view(state.momentum.back());
  args.k_tail = state_view(*state.k_tail);
  args.v_tail = state_view(*state.v_tail);
}

Tensor exp_omega_rule_update_cpu(
    const Tensor& q, const Tensor& k, const Tensor& v,           // [N, H, K], [N, H, K], [N, H, V]
    const Tensor& gamma, const Tensor& eta,                      // [N, H, W], [N, H]
    const MaybeTensor& log_alpha, const MaybeTensor& log_theta,  // [N, H]
    const Tensors& weights,                                      // each [N, H, out, in]
    const Tensor& keys, const Tensors& coefficients,             // each [N, capacity, H, .]
    const Tensors& momentum, const Tensors& chunk_weights, const Tensor& k_tail,
    const Tensor& v_tail,    // [N, W-1, H, K], [N, W-1, H, V]
    const Tensor& position,  // [N]
    const std::string& objective, const std::string& activation, bool residual,
    const std::string& normalize, double scale, int64_t chunk_size) {
  const ExpOmegaTokens tokens{q, k, v, gamma, eta, log_alpha, log_theta};
  const ExpOmegaRuleOptions given{objective, activation, residual, normalize, scale, chunk_size};
  const MaybeTensor all_keys = keys, k_rows = k_tail, v_rows = v_tail, places = position;
  const ExpOmegaStateArguments state{weights,       all_keys, coefficients, momentum,
                                     chunk_weights, k_rows,   v_rows,       places};
  const ExpOmegaShape shape = check_exp_omega_rule_update(kOp, tokens, state, given);
  const OmegaShape& letters = shape.omega;
  std::vector<cpu::OmegaSequence> sequences;
  int64_t* const counter = position.mutable_data_ptr<int64_t>();
  for (int64_t n = 0; n < letters.sequences; ++n) {
    const int64_t seen = counter[n * position.stride(0)];
    ATLAS_CHECK(seen >= 0 && seen < shape.capacity, kOp, "state.position",
                "tokens seen, below the capacity " + std::to_string(shape.capacity) +
                    " (ExpOmegaState.reserve makes room)",
                std::to_string(seen));
    sequences.push_back({n, 0, 1, seen, 0});
  }
  const Tensor o = torch::stable::new_empty(v, {letters.sequences, letters.heads, letters.value});
  cpu::ExpOmegaUpdate args{};
  args.options = exp_options(shape, given, q);
  cpu::OmegaInputs& in = args.in.omega;
  in.q = one_token(q);
  in.k = one_token(k);
  in.v = one_token(v);
  in.gamma = one_token(gamma);
  in.eta = one_token(eta);
  in.log_alpha = one_token(log_alpha);
  in.log_theta = one_token(log_theta);
  exp_state_views(args.in, shape, state);
  in.sequences = sequences.data();
  in.num_sequences = letters.sequences;
  in.tokens = 1;
  view_state(args, shape, state);
  args.o = mutable_array(o);
  if (letters.sequences * letters.heads > 0) {
    const cpu::ParallelFor parallel = torch_threads();
    const Tensor memory = scratch(
        q, cpu::exp_omega_rule_scratch(cpu::ExpOmegaPass::update, args.options, args.in, parallel));
    args.scratch = memory.mutable_data_ptr();
    cpu::exp_omega_update(args, parallel);
  }
  for (int64_t n = 0; n < letters.sequences; ++n) counter[n * position.stride(0)] += 1;
  return o;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CPU, library) {
  library.impl("exp_omega_rule_update", TORCH_BOX(&exp_omega_rule_update_cpu));
}

}  // namespace atlas::ops
