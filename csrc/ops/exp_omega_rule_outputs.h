#pragma once
// What the exponential Omega rule's operators return, allocated alike on every device; `make` and
// the kernels' arguments as omega_rule_outputs.h has them.
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "ops/exp_omega_rule.h"

namespace atlas::ops {

// o, final keys, coefficients, momentum, weights, chunk_weights, k_tail, v_tail, position, saved.
using ExpOmegaOutputs =
    std::tuple<Tensor, Tensor, Tensors, Tensors, Tensors, Tensors, Tensor, Tensor, Tensor, Tensors>;
// Of q, k, v, gamma, eta, log_alpha, log_theta, keys, k_tail and v_tail, with no elements where
// unwanted; of weights, coefficients, momentum, chunk_weights.
using ExpOmegaGradients = std::tuple<Tensors, Tensors, Tensors, Tensors, Tensors>;

// `extra_rows`: beyond T, of the final state; none: no such state. Fills args.capacity in.
template <class Args, class Make>
ExpOmegaOutputs new_exp_outputs(Args& args, const ExpOmegaTokens& given,
                                const ExpOmegaStateArguments& state, const ExpOmegaShape& shape,
                                std::optional<int64_t> extra_rows, ScalarType sums,
                                const Make& make) {
  const Tensor& q = given.q;
  const OmegaShape& letters = shape.omega;
  const auto nothing = [&](ScalarType type) {  // one each: outputs must not alias
    return torch::stable::new_empty(q, {0}, type);
  };
  ExpOmegaOutputs result{
      make(args.o, "o", given.v, {letters.batch, letters.tokens, letters.heads, letters.value},
           given.v.scalar_type()),
      nothing(q.scalar_type()),
      {},
      {},
      {},
      {},
      nothing(q.scalar_type()),
      nothing(q.scalar_type()),
      nothing(ScalarType::Long),
      {}};
  auto& [o, keys, coefficients, momentum, weights, chunk_weights, k_tail, v_tail, position, saved] =
      result;
  args.capacity = extra_rows ? letters.tokens + *extra_rows : -1;
  if (!extra_rows) return result;
  const auto type_of = [&](const MaybeTensor& tensor) {
    return tensor ? tensor->scalar_type() : q.scalar_type();
  };
  const auto rows = [&](auto& target, const char* name, int64_t width, ScalarType type) {
    return make(target, name, q, {letters.sequences, args.capacity, letters.heads, width}, type);
  };
  const auto matrix = [&](int64_t l, auto& target, const char* name) {
    const std::vector<int64_t> sizes = matrix_shape(letters, l);
    return make(target, name, q, {letters.sequences, letters.heads, sizes[0], sizes[1]}, sums);
  };
  const auto tail = [&](auto& target, const char* name, int64_t width, ScalarType type) {
    return make(target, name, q, {letters.sequences, letters.window - 1, letters.heads, width},
                type);
  };
  keys = rows(args.keys, "final_keys", letters.key, type_of(state.keys));
  for (int64_t set = 0; set < shape.sets; ++set) {
    coefficients.push_back(rows(args.coefficients[set], "final_coefficients", shape.row, sums));
    chunk_weights.push_back(rows(args.reference[set], "final_chunk_weights", shape.row, sums));
    if (given.log_theta)
      momentum.push_back(rows(args.momentum[set], "final_momentum", shape.row, sums));
  }
  const auto matrices = static_cast<int64_t>(shape.matrices());
  for (int64_t l = 0; l < matrices; ++l) {
    weights.push_back(matrix(l, args.weights[l], "final_weights"));
    chunk_weights.push_back(matrix(l, args.chunk_weights[l], "final_chunk_weights"));
  }
  if (given.log_theta && matrices > 0)
    momentum.push_back(matrix(matrices - 1, args.weights_momentum, "final_momentum"));
  k_tail = tail(args.k_tail, "final_k_tail", letters.key, type_of(state.k_tail));
  v_tail = tail(args.v_tail, "final_v_tail", letters.value, type_of(state.v_tail));
  position = torch::stable::new_empty(q, {letters.sequences}, ScalarType::Long);
  return result;
}

// The list `saved`, zero: chunks are counted from above, and an output must not hold what nobody
// wrote.
inline Tensors new_saved(const ExpOmegaShape& shape, const ExpOmegaRuleOptions& given,
                         const Tensor& q, bool momentum, ScalarType sums) {
  Tensors saved;
  for (const std::vector<int64_t>& sizes : saved_shapes(shape, given, momentum))
    saved.push_back(torch::stable::new_zeros(q, sizes, sums));
  return saved;
}

template <class Args, class Make>
ExpOmegaGradients new_exp_gradients(Args& args, const ExpOmegaTokens& given,
                                    const ExpOmegaStateArguments& state, const ExpOmegaShape& shape,
                                    int64_t mask, const Make& make) {
  ExpOmegaGradients result;
  auto& [grads, weights, coefficients, momentum, chunk_weights] = result;
  for (int i = 0; i < 10; ++i)  // one each: outputs must not alias
    grads.push_back(torch::stable::new_empty(given.q, {0}));
  const auto want = [&](auto& target, const char* name, const Tensor& like, bool zero = false) {
    return make(target, name, like, {like.sizes().begin(), like.sizes().end()}, like.scalar_type(),
                zero);
  };
  // Zero where nothing is written: rows where a sequence has not been, an unread momentum.
  const auto want_zero = [&](auto& target, const char* name, const Tensor& like) {
    return want(target, name, like, true);
  };
  const auto one = [&](int place, int64_t bit, auto& target, const char* name,
                       const MaybeTensor& tensor) {
    if (tensor && (mask & bit)) grads[place] = want(target, name, *tensor);
  };
  one(0, kQ, args.grad_q, "grad_q", given.q);
  one(1, kK, args.grad_k, "grad_k", given.k);
  one(2, kV, args.grad_v, "grad_v", given.v);
  one(3, kGamma, args.grad_gamma, "grad_gamma", given.gamma);
  one(4, kEta, args.grad_eta, "grad_eta", given.eta);
  one(5, kLogAlpha, args.grad_log_alpha, "grad_log_alpha", given.log_alpha);
  one(6, kLogTheta, args.grad_log_theta, "grad_log_theta", given.log_theta);
  if (state.keys && (mask & kExpKeys))
    grads[7] = want_zero(args.grad_keys, "grad_keys", *state.keys);
  one(8, kExpKTail, args.grad_k_tail, "grad_k_tail", state.k_tail);
  one(9, kExpVTail, args.grad_v_tail, "grad_v_tail", state.v_tail);
  const size_t sets = static_cast<size_t>(shape.sets), matrices = shape.matrices();
  for (size_t l = 0; l < matrices && (mask & kExpWeights); ++l)
    weights.push_back(want(args.grad_weights[l], "grad_weights", state.weights[l]));
  for (size_t set = 0; state.keys && set < sets; ++set) {
    if (mask & kExpCoefficients)
      coefficients.push_back(
          want_zero(args.grad_coefficients[set], "grad_coefficients", state.coefficients[set]));
    if ((mask & kExpMomentum) && !state.momentum.empty())
      momentum.push_back(want_zero(args.grad_momentum[set], "grad_momentum", state.momentum[set]));
    if (mask & kExpChunkWeights)
      chunk_weights.push_back(
          want_zero(args.grad_reference[set], "grad_chunk_weights", state.chunk_weights[set]));
  }
  if (!momentum.empty() && matrices > 0)
    momentum.push_back(
        want_zero(args.grad_weights_momentum, "grad_momentum", state.momentum.back()));
  for (size_t l = 0; l < matrices && !chunk_weights.empty(); ++l)
    chunk_weights.push_back(
        want(args.grad_chunk_weights[l], "grad_chunk_weights", state.chunk_weights[sets + l]));
  return result;
}

}  // namespace atlas::ops
