#include <torch/csrc/stable/library.h>

#include "ops/omega_rule_cuda.h"
#include "ops/omega_rule_update.h"

namespace atlas::ops {
namespace {

namespace cuda_kernels = kernels::cuda;

constexpr const char* kOp = "omega_rule_update";

// Slots and positions are read by the kernel alone, so nothing waits for the device and the call
// can be captured in a graph. A row whose slot is not in [0, N), or whose position is negative,
// gets NaN as its output and leaves the state untouched; of a slot that occurs twice the state is
// undefined.
Tensor omega_rule_update_cuda(const Tensor& q, const Tensor& k,
                              const Tensor& v,  // [M, H, K], [M, H, K], [M, H, V]
                              const Tensor& gamma, const Tensor& eta,  // [M, H, W], [M, H]
                              const MaybeTensor& log_alpha, const MaybeTensor& log_theta,  // [M, H]
                              const Tensors& weights, const Tensors& momentum,
                              const Tensors& chunk_weights,  // each [N, H, out, in]
                              const Tensor& k_tail,
                              const Tensor& v_tail,               // [N, W-1, H, K], [N, W-1, H, V]
                              const Tensor& position,             // [N]
                              const MaybeTensor& state_indices,   // [M]
                              const MaybeTensor& feature_scales,  // [degree + 1]
                              const MaybeTensor& ns_table,        // [ns_steps, 3]
                              const std::string& objective, const std::string& activation,
                              bool residual, int64_t degree, int64_t ns_steps,
                              const std::string& ns_schedule, const std::string& ns_scale,
                              int64_t ns_every, int64_t chunk_size, bool allow_tf32) {
  const OmegaRuleOptions given{objective,   activation, residual, degree,    ns_steps,
                               ns_schedule, ns_scale,   ns_every, chunk_size};
  OmegaShape shape = check_omega_rule_update(
      kOp, q, k, v, gamma, eta, log_alpha, log_theta, weights, momentum, chunk_weights, k_tail,
      v_tail, position, state_indices, feature_scales, ns_table, given);
  const int64_t rows = shape.tokens;
  shape.tokens = 1;
  const cuda_kernels::Dtype dtype = cuda_dtype(kOp, "q", q);
  const CudaContext cuda(q);
  Tensors held;
  cuda_kernels::OmegaUpdate args{};
  args.options =
      omega_options(cuda, kOp, shape, given, log_theta.has_value(), feature_scales, ns_table, held);
  omega_token(cuda, kOp, args.in, q, k, v, gamma, eta, log_alpha, log_theta);
  omega_tensors(cuda, kOp, args.in.weights, weights, "weights", true);
  omega_tensors(cuda, kOp, args.in.momentum, momentum, "momentum", true);
  omega_tensors(cuda, kOp, args.in.chunk_weights, chunk_weights, "chunk_weights", true);
  args.in.k_tail = omega_tensor(cuda, kOp, k_tail, "k_tail", true);
  args.in.v_tail = omega_tensor(cuda, kOp, v_tail, "v_tail", true);
  args.in.sequences = shape.sequences;
  args.in.tokens = 1;
  args.position = static_cast<int64_t*>(cuda.update(position, "position"));
  args.position_stride = position.stride(0);
  args.capacity = cuda_kernels::kReading - 1;
  if (state_indices) {
    held.push_back(torch::stable::contiguous(*state_indices));
    args.slots = cuda.read(held.back(), "state_indices");
    args.wide_slots = state_indices->scalar_type() == ScalarType::Long;
  }
  args.rows = rows;
  const Tensor o = torch::stable::new_empty(v, {rows, shape.heads, shape.value});
  if (rows == 0) return o;
  args.o = {cuda.write(o, "o"), dtype};
  const cuda_kernels::OmegaPlan plan = cuda_kernels::omega_rule_plan(
      cuda_kernels::OmegaPass::update, args.options, dtype, allow_tf32, rows * shape.heads);
  const Tensor memory = omega_scratch(q, plan);
  args.space.device = static_cast<float*>(cuda.scratch(memory, "scratch"));
  check_launch(cuda_kernels::omega_rule_update(args, plan, cuda.stream()), kOp);
  return o;
}

}  // namespace

ATLAS_CUDA_LIBRARY_IMPL(library) {
  library.impl("omega_rule_update", TORCH_BOX(&omega_rule_update_cuda));
}

}  // namespace atlas::ops
