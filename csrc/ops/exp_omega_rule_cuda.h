#pragma once
// From the tensors of the exponential Omega rule's operators to what the CUDA kernels take.
#include "kernels/cuda/exp_omega_rule.h"
#include "ops/exp_omega_rule_outputs.h"
#include "ops/omega_rule_cuda.h"

namespace atlas::ops {

// The kernels' options; `most_rows`: what a sequence may have after the call, by the shape of
// `argument`.
inline kernels::cuda::ExpOmegaOptions exp_omega_options(const CudaContext& cuda, const char* op,
                                                        const ExpOmegaShape& shape,
                                                        const ExpOmegaRuleOptions& given,
                                                        bool momentum, int64_t most_rows,
                                                        const char* argument) {
  constexpr int64_t kMost = int64_t{1} << 31;  // kernels number rows, and a chunk's, in 32 bits
  ATLAS_CHECK(most_rows < kMost, op, argument,
              "fewer than 2^31 tokens, the state's included, on CUDA", std::to_string(most_rows));
  const int64_t window = std::min(given.chunk_size, shape.omega.tokens) + shape.omega.window,
                row = (momentum ? 2 : 1) * shape.sets * shape.row;
  ATLAS_CHECK(window * row < kMost, op, "q", "a chunk's rows of fewer than 2^31 numbers on CUDA",
              std::to_string(window) + " rows of " + std::to_string(row));
  Tensors none;
  kernels::cuda::ExpOmegaOptions options{};
  options.omega = omega_options(cuda, op, shape.omega, omega_options_of(given), momentum,
                                std::nullopt, std::nullopt, none);
  options.normalize = given.normalize == "softmax" ? kernels::cuda::ExpNormalize::softmax
                      : given.normalize == "rms"   ? kernels::cuda::ExpNormalize::rms
                                                   : kernels::cuda::ExpNormalize::none;
  options.scale = static_cast<float>(given.scale);
  options.most_rows = std::max<int64_t>(1, most_rows);
  return options;
}

// The state as kernels read it (`update`: read and write); `prefix` is how the caller names it,
// `held` keeps alive what `in` points to.
inline void exp_omega_state(const CudaContext& cuda, const char* op, const std::string& prefix,
                            kernels::cuda::ExpOmegaInputs& in, const ExpOmegaShape& shape,
                            const ExpOmegaStateArguments& state, Tensors& held,
                            bool update = false) {
  const size_t sets = static_cast<size_t>(shape.sets), matrices = shape.matrices();
  const auto view = [&](const Tensor& tensor, const char* name) {
    return omega_tensor(cuda, op, tensor, (prefix + name).c_str(), update);
  };
  omega_tensors(cuda, op, in.omega.weights, state.weights, (prefix + "weights").c_str(), update);
  in.capacity = shape.capacity;
  if (!state.keys) return;
  in.keys = view(*state.keys, "keys");
  in.omega.k_tail = view(*state.k_tail, "k_tail");
  in.omega.v_tail = view(*state.v_tail, "v_tail");
  for (size_t set = 0; set < sets; ++set) {
    in.coefficients[set] = view(state.coefficients[set], "coefficients");
    in.reference[set] = view(state.chunk_weights[set], "chunk_weights");
    if (!state.momentum.empty()) in.momentum[set] = view(state.momentum[set], "momentum");
  }
  for (size_t l = 0; l < matrices; ++l) {
    const Tensor& matrix = state.chunk_weights[sets + l];
    if (!update) held.push_back(reference_matrix(matrix));
    in.omega.chunk_weights[l] = view(update ? matrix : held.back(), "chunk_weights");
  }
  if (matrices > 0 && !state.momentum.empty())
    in.omega.momentum[matrices - 1] = view(state.momentum.back(), "momentum");
}

// All that the schema gives forward and backward alike, checked, with what the kernels point to
// kept alive.
struct ExpOmegaCudaCall {
  const char* op;
  ExpOmegaShape shape;
  kernels::cuda::Dtype dtype;
  CudaContext cuda;
  Tensors held;
  kernels::cuda::ExpOmegaOptions options;
  kernels::cuda::ExpOmegaInputs in{};

  ExpOmegaCudaCall(const char* name, const ExpOmegaTokens& tokens,
                   const ExpOmegaStateArguments& state, const MaybeTensor& cu_seqlens,
                   const ExpOmegaRuleOptions& given)
      : op(name),
        shape(check_exp_omega_rule(op, tokens, state, cu_seqlens, given)),
        dtype(cuda_dtype(op, "q", tokens.q)),
        cuda(tokens.q),
        options(exp_omega_options(cuda, op, shape, given, tokens.log_theta.has_value(),
                                  shape.capacity + shape.omega.tokens, "q")) {
    exp_omega_state(cuda, op, state_prefix(state), in, shape, state, held);
    kernels::cuda::OmegaInputs& omega = in.omega;
    omega.q = omega_tensor(cuda, op, tokens.q, "q");
    omega.k = omega_tensor(cuda, op, tokens.k, "k");
    omega.v = omega_tensor(cuda, op, tokens.v, "v");
    omega.gamma = omega_tensor(cuda, op, tokens.gamma, "gamma");
    omega.eta = omega_tensor(cuda, op, tokens.eta, "eta");
    omega.log_alpha = omega_tensor(cuda, op, tokens.log_alpha, "log_alpha");
    omega.log_theta = omega_tensor(cuda, op, tokens.log_theta, "log_theta");
    omega_sequences(cuda, omega, state.position, cu_seqlens, held);
    omega.sequences = shape.omega.sequences;
    omega.tokens = shape.omega.tokens;
    omega.checkpoints = shape.chunks;
  }

  int64_t items() const { return shape.omega.sequences * shape.omega.heads; }

  // `tensors` as kernels write what they need again (`written`), or read it.
  kernels::cuda::ExpOmegaSaved saved(const Tensors& tensors, bool written) const {
    float* data[6] = {};
    for (size_t i = 0; i < tensors.size(); ++i)
      if (tensors[i].dim() > 1)
        data[i] = static_cast<float*>(written ? cuda.update(tensors[i], "saved")
                                              : const_cast<void*>(cuda.read(tensors[i], "saved")));
    return {shape.window_rows, data[0], data[1], data[2], data[3], data[4], data[5]};
  }
};

}  // namespace atlas::ops
