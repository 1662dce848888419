#pragma once
// What the omega rule's operators return, allocated alike on every device. The kernels' arguments
// have fields of the same names everywhere; make(target, name, like, shape, type) allocates a
// tensor and lets `target`, such a field, point to it; with a last `true` it is zero.
#include <torch/csrc/stable/ops.h>

#include <string>
#include <tuple>

#include "ops/omega_rule.h"

namespace atlas::ops {

// o, final weights, momentum, chunk_weights, k_tail, v_tail, position, checkpoints.
using OmegaOutputs = std::tuple<Tensor, Tensors, Tensors, Tensors, Tensor, Tensor, Tensor, Tensors>;
// Of q, k, v, gamma, eta, log_alpha, log_theta, k_tail, v_tail and feature_scales, with no elements
// where unwanted; of weights, momentum, chunk_weights.
using OmegaGradients = std::tuple<Tensors, Tensors, Tensors, Tensors>;

// What both operators are given.
struct OmegaGiven {
  const Tensor &q, &k, &v, &gamma, &eta;
  const MaybeTensor &log_alpha, &log_theta;
  const Tensors &weights, &momentum, &chunk_weights;
  const MaybeTensor &k_tail, &v_tail;
};

struct OmegaWants {
  bool final_state, checkpoints;
  int64_t checkpoint_count;
};

template <class Args, class Make>
OmegaOutputs new_outputs(Args& args, const OmegaGiven& given, const OmegaShape& shape,
                         const OmegaWants& wants, ScalarType sums, const Make& make) {
  const auto states = [&](auto& targets, const char* name) {
    Tensors state;
    for (int64_t l = 0; l < shape.matrices; ++l) {
      const std::vector<int64_t> sizes = matrix_shape(shape, l);
      state.push_back(make(targets[l], name, given.q,
                           {shape.sequences, shape.heads, sizes[0], sizes[1]}, sums));
    }
    return state;
  };
  const auto tail = [&](auto& target, const char* name, const MaybeTensor& before,
                        const Tensor& tokens, int64_t width) {
    return make(target, name, given.q, {shape.sequences, shape.window - 1, shape.heads, width},
                before ? before->scalar_type() : tokens.scalar_type());
  };
  OmegaOutputs result{
      make(args.o, "o", given.v, {shape.batch, shape.tokens, shape.heads, shape.value},
           given.v.scalar_type()),
      {},
      {},
      {},
      torch::stable::new_empty(given.q, {0}),  // one each: outputs must not alias
      torch::stable::new_empty(given.q, {0}),
      torch::stable::new_empty(given.q, {0}, ScalarType::Long),
      {}};
  auto& [o, weights, momentum, chunk_weights, k_tail, v_tail, position, checkpoints] = result;
  if (wants.final_state) {
    weights = states(args.weights, "final_weights");
    chunk_weights = states(args.chunk_weights, "final_chunk_weights");
    if (given.log_theta) momentum = states(args.momentum, "final_momentum");
    k_tail = tail(args.k_tail, "final_k_tail", given.k_tail, given.k, shape.key);
    v_tail = tail(args.v_tail, "final_v_tail", given.v_tail, given.v, shape.value);
    position = torch::stable::new_empty(given.q, {shape.sequences}, ScalarType::Long);
  }
  const auto saved = [&](auto& targets) {
    for (int64_t l = 0; l < shape.matrices; ++l) {
      const std::vector<int64_t> sizes = matrix_shape(shape, l);
      checkpoints.push_back(make(targets[l], "checkpoints", given.q,
                                 {wants.checkpoint_count, shape.heads, sizes[1], sizes[0]}, sums));
    }
  };
  if (wants.checkpoints) {
    saved(args.weights_checkpoints);
    if (given.log_theta) saved(args.momentum_checkpoints);
  }
  return result;
}

template <class Args, class Make>
OmegaGradients new_gradients(Args& args, const OmegaGiven& given, int64_t mask, const Make& make) {
  OmegaGradients result;
  auto& [grads, weights, momentum, chunk_weights] = result;
  for (int i = 0; i < 10; ++i)  // one each: outputs must not alias
    grads.push_back(torch::stable::new_empty(given.q, {0}));
  const auto like = [&](auto& target, const std::string& name, const Tensor& tensor) {
    return make(target, ("grad_" + name).c_str(), tensor,
                {tensor.sizes().begin(), tensor.sizes().end()}, tensor.scalar_type());
  };
  const auto one = [&](int place, Wanted bit, auto& target, const char* name,
                       const MaybeTensor& tensor) {
    if (tensor && (mask & bit)) grads[place] = like(target, name, *tensor);
  };
  one(0, kQ, args.grad_q, "q", given.q);
  one(1, kK, args.grad_k, "k", given.k);
  one(2, kV, args.grad_v, "v", given.v);
  one(3, kGamma, args.grad_gamma, "gamma", given.gamma);
  one(4, kEta, args.grad_eta, "eta", given.eta);
  one(5, kLogAlpha, args.grad_log_alpha, "log_alpha", given.log_alpha);
  one(6, kLogTheta, args.grad_log_theta, "log_theta", given.log_theta);
  one(7, kKTail, args.grad_k_tail, "k_tail", given.k_tail);
  one(8, kVTail, args.grad_v_tail, "v_tail", given.v_tail);
  const auto each = [&](Tensors& out, Wanted bit, auto& targets, const char* name,
                        const Tensors& tensors) {
    for (size_t l = 0; (mask & bit) && l < tensors.size(); ++l)
      out.push_back(like(targets[l], name, tensors[l]));
  };
  each(weights, kWeights, args.grad_weights, "weights", given.weights);
  each(momentum, kMomentum, args.grad_momentum, "momentum", given.momentum);
  each(chunk_weights, kChunkWeights, args.grad_chunk_weights, "chunk_weights", given.chunk_weights);
  // A momentum that no decay keeps is not read.
  if (!given.log_theta)
    for (const Tensor& unread : momentum) {
      Tensor zero = unread;
      torch::stable::zero_(zero);
    }
  return result;
}

// The sum over the first dimension.
inline Tensor summed(const Tensor& parts, ScalarType type) {
  const int64_t first[1] = {0};
  return torch::stable::to(
      torch::stable::sum(parts, torch::headeronly::IntHeaderOnlyArrayRef(first, 1)), type);
}

}  // namespace atlas::ops
