#pragma once
// From the tensors of the omega rule's operators to what the CUDA kernels take.
#include <limits>

#include "kernels/cuda/omega_rule.h"
#include "ops/cuda_arguments.h"
#include "ops/omega_rule_outputs.h"

namespace atlas::ops {

// A tensor as kernels read it (`update`: read and write).
inline kernels::cuda::OmegaTensor omega_tensor(const CudaContext& cuda, const char* op,
                                               const Tensor& tensor, const char* name,
                                               bool update = false) {
  kernels::cuda::OmegaTensor view{};
  view.data = update ? cuda.update(tensor, name) : cuda.read(tensor, name);
  view.dtype = cuda_dtype(op, name, tensor);
  view.present = true;
  for (int64_t i = 0; i < tensor.dim(); ++i) view.stride[i] = tensor.stride(i);
  return view;
}

inline kernels::cuda::OmegaTensor omega_tensor(const CudaContext& cuda, const char* op,
                                               const MaybeTensor& tensor, const char* name) {
  return tensor ? omega_tensor(cuda, op, *tensor, name) : kernels::cuda::OmegaTensor();
}

// One token for each of M rows: [M, H, ...] as the kernels' [B, T, H, ...] with T = 1.
inline void omega_token(const CudaContext& cuda, const char* op, kernels::cuda::OmegaInputs& in,
                        const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gamma,
                        const Tensor& eta, const MaybeTensor& log_alpha,
                        const MaybeTensor& log_theta) {
  const auto token = [&](const MaybeTensor& tensor, const char* name) {
    kernels::cuda::OmegaTensor view = omega_tensor(cuda, op, tensor, name);
    for (int i = 3; i > 1; --i) view.stride[i] = view.stride[i - 1];
    view.stride[1] = 0;
    return view;
  };
  in.q = token(q, "q");
  in.k = token(k, "k");
  in.v = token(v, "v");
  in.gamma = token(gamma, "gamma");
  in.eta = token(eta, "eta");
  in.log_alpha = token(log_alpha, "log_alpha");
  in.log_theta = token(log_theta, "log_theta");
}

inline void omega_tensors(const CudaContext& cuda, const char* op,
                          kernels::cuda::OmegaTensor* views, const Tensors& matrices,
                          const char* name, bool update = false) {
  for (size_t l = 0; l < matrices.size(); ++l)
    views[l] = omega_tensor(cuda, op, matrices[l], name, update);
}

// How results are made for new_outputs and new_gradients.
struct NewKernelResult {
  const CudaContext& cuda;
  const char* op;

  template <class Target>
  Tensor operator()(Target& target, const char* name, const Tensor& like,
                    const std::vector<int64_t>& shape, ScalarType type, bool zero = false) const {
    const Tensor result = zero ? torch::stable::new_zeros(like, shape, type)
                               : torch::stable::new_empty(like, shape, type);
    void* const data = zero ? cuda.update(result, name) : cuda.write(result, name);
    if constexpr (std::is_same_v<Target, kernels::cuda::OmegaResult>)
      target = {data, cuda_dtype(op, name, result)};
    else
      target = static_cast<Target>(data);
    return result;
  }
};

// What the kernels' 32-bit indices allow.
inline void check_omega_limits(const char* op, const char* argument, const OmegaShape& shape,
                               int64_t chunk) {
  constexpr int64_t kMost = int64_t{1} << 30;  // kernels index what belongs to one head in 32 bits
  const int64_t rows = chunk + shape.window, inputs = std::max(shape.features, shape.hidden) + 8,
                outputs = std::max(shape.value, shape.hidden) + 8;
  ATLAS_CHECK(shape.heads >= 1, op, argument, "H >= 1 on CUDA", std::to_string(shape.heads));
  ATLAS_CHECK(
      shape.key < 65535 && 3 * inputs * outputs < kMost &&
          rows * (std::max(std::max(rows, shape.key), outputs) + 8) < kMost,
      op, argument, "K < 65535, and matrices and chunks of fewer than 2^30 elements on CUDA",
      "K = " + std::to_string(shape.key) + ", D = " + std::to_string(shape.features) +
          ", V = " + std::to_string(shape.value) + ", F = " + std::to_string(shape.hidden) +
          ", W = " + std::to_string(shape.window) + ", a chunk of " + std::to_string(chunk));
}

// The kernels' options. `tensors` keeps alive what they point to.
inline kernels::cuda::OmegaOptions omega_options(const CudaContext& cuda, const char* op,
                                                 const OmegaShape& shape,
                                                 const OmegaRuleOptions& given, bool momentum,
                                                 const MaybeTensor& feature_scales,
                                                 const MaybeTensor& ns_table, Tensors& tensors) {
  const int64_t chunk = std::max<int64_t>(1, std::min(given.chunk_size, shape.tokens));
  check_omega_limits(op, "q", shape, chunk);
  kernels::cuda::OmegaOptions options{};
  options.heads = static_cast<int>(shape.heads);
  options.key = static_cast<int>(shape.key);
  options.value = static_cast<int>(shape.value);
  options.features = static_cast<int>(shape.features);
  options.hidden = static_cast<int>(shape.hidden);
  options.window = static_cast<int>(shape.window);
  options.matrices = static_cast<int>(shape.matrices);
  options.chunk = static_cast<int>(chunk);
  options.degree = static_cast<int>(given.degree);
  options.activation = given.activation == "gelu"   ? kernels::cuda::OmegaActivation::gelu
                       : given.activation == "silu" ? kernels::cuda::OmegaActivation::silu
                                                    : kernels::cuda::OmegaActivation::identity;
  options.l2 = given.objective == "l2";
  options.residual = given.residual;
  options.momentum = momentum;
  options.chunk_size = given.chunk_size;
  options.ns_every = given.ns_every;
  const auto held = [&](const MaybeTensor& tensor, const char* name) -> const float* {
    if (!tensor) return nullptr;
    tensors.push_back(*float_copy(tensor));
    return static_cast<const float*>(cuda.read(tensors.back(), name));
  };
  options.scales = held(feature_scales, "feature_scales");
  kernels::cuda::NewtonSchulzSchedule& schedule = options.schedule;
  schedule.steps = static_cast<int>(given.ns_steps);
  schedule.table = held(ns_table, "ns_schedule");
  constexpr int64_t kRows = sizeof schedule.row / sizeof schedule.row[0];
  schedule.rows = static_cast<int>(std::min(given.ns_steps, kRows));
  if (!ns_table) {
    const std::vector<double> rows_of =
        schedule_rows(std::nullopt, given.ns_schedule, schedule.rows);
    for (int64_t i = 0; i < 3 * schedule.rows; ++i)
      schedule.row[i / 3][i % 3] = static_cast<float>(rows_of[i]);
  }
  for (int64_t l = 0; l < shape.matrices; ++l) {
    const std::vector<int64_t> sizes = matrix_shape(shape, l);
    options.ns_scales[l] = static_cast<float>(ns_factor(given.ns_scale, sizes[0], sizes[1]));
  }
  return options;
}

// Kernels read M_ref where it lies, with strides of 32 bits.
inline Tensor reference_matrix(const Tensor& matrix) {
  const int64_t last =
      (matrix.size(2) - 1) * matrix.stride(2) + (matrix.size(3) - 1) * matrix.stride(3);
  return last <= std::numeric_limits<int>::max() ? matrix : torch::stable::contiguous(matrix);
}

// Where sequences are; `held` keeps alive what `in` points to.
inline void omega_sequences(const CudaContext& cuda, kernels::cuda::OmegaInputs& in,
                            const MaybeTensor& position, const MaybeTensor& cu_seqlens,
                            Tensors& held) {
  if (position) {
    held.push_back(torch::stable::contiguous(*position));
    in.position = static_cast<const int64_t*>(cuda.read(held.back(), "position"));
  }
  if (cu_seqlens) {
    held.push_back(torch::stable::contiguous(*cu_seqlens));
    in.cu_seqlens = cuda.read(held.back(), "cu_seqlens");
    in.wide_seqlens = cu_seqlens->scalar_type() == ScalarType::Long;
  }
}

// All that the schema gives forward and backward alike, checked, with what the kernels point to
// kept alive.
struct OmegaCudaCall {
  const char* op;
  OmegaShape shape;
  kernels::cuda::Dtype dtype;
  CudaContext cuda;
  Tensors held;
  kernels::cuda::OmegaOptions options;
  kernels::cuda::OmegaInputs in{};
  int64_t checkpoints;

  OmegaCudaCall(const char* name, const Tensor& q, const Tensor& k, const Tensor& v,
                const Tensor& gamma, const Tensor& eta, const MaybeTensor& log_alpha,
                const MaybeTensor& log_theta, const Tensors& weights, const Tensors& momentum,
                const Tensors& chunk_weights, const MaybeTensor& k_tail, const MaybeTensor& v_tail,
                const MaybeTensor& position, const MaybeTensor& feature_scales,
                const MaybeTensor& ns_table, const MaybeTensor& cu_seqlens,
                const OmegaRuleOptions& given)
      : op(name),
        shape(check_omega_rule(op, q, k, v, gamma, eta, log_alpha, log_theta, weights, momentum,
                               chunk_weights, k_tail, v_tail, position, feature_scales, ns_table,
                               cu_seqlens, given)),
        dtype(cuda_dtype(op, "q", q)),
        cuda(q),
        options(omega_options(cuda, op, shape, given, log_theta.has_value(), feature_scales,
                              ns_table, held)),
        checkpoints(
            checkpoints_of(shape, given.chunk_size, position.has_value(), cu_seqlens.has_value())) {
    in.q = omega_tensor(cuda, op, q, "q");
    in.k = omega_tensor(cuda, op, k, "k");
    in.v = omega_tensor(cuda, op, v, "v");
    in.gamma = omega_tensor(cuda, op, gamma, "gamma");
    in.eta = omega_tensor(cuda, op, eta, "eta");
    in.log_alpha = omega_tensor(cuda, op, log_alpha, "log_alpha");
    in.log_theta = omega_tensor(cuda, op, log_theta, "log_theta");
    omega_tensors(cuda, op, in.weights, weights, "weights");
    omega_tensors(cuda, op, in.momentum, momentum, "momentum");
    for (size_t l = 0; l < chunk_weights.size(); ++l) {
      held.push_back(reference_matrix(chunk_weights[l]));
      in.chunk_weights[l] = omega_tensor(cuda, op, held.back(), "chunk_weights");
    }
    in.k_tail = omega_tensor(cuda, op, k_tail, "k_tail");
    in.v_tail = omega_tensor(cuda, op, v_tail, "v_tail");
    omega_sequences(cuda, in, position, cu_seqlens, held);
    in.sequences = shape.sequences;
    in.tokens = shape.tokens;
    in.checkpoints = checkpoints;
  }

  int64_t items() const { return shape.sequences * shape.heads; }
  // That a sequence may have: of a packed one all tokens, and one more where it begins in the
  // middle of a chunk.
  int64_t chunks() const {
    return shape.tokens / options.chunk_size + (shape.tokens % options.chunk_size != 0) +
           (in.position != nullptr);
  }
  int64_t packed() const { return in.cu_seqlens != nullptr ? shape.sequences : 1; }
};

// What blocks work in beside shared memory.
inline Tensor omega_scratch(const Tensor& like, const kernels::cuda::OmegaPlan& plan) {
  const bool teams = plan.team.rows > 0;
  const int64_t blocks = teams ? plan.team.blocks : plan.blocks,
                shared = teams ? plan.blocks * plan.team.floats : 0;
  return torch::stable::new_empty(like, {blocks * plan.scratch_bytes / 4 + shared},
                                  ScalarType::Float);
}

}  // namespace atlas::ops
