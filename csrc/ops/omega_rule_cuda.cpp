#include "ops/omega_rule_cuda.h"

#include <torch/csrc/stable/library.h>

namespace atlas::ops {
namespace {

namespace cuda_kernels = kernels::cuda;

using Forward = std::tuple<Tensor, Tensors, Tensors, Tensors, Tensor, Tensor, Tensor, Tensors>;

Forward omega_rule_cuda(const Tensor& q, const Tensor& k,
                        const Tensor& v,  // [B, T, H, K], [B, T, H, K], [B, T, H, V]
                        const Tensor& gamma, const Tensor& eta,  // [B, T, H, W], [B, T, H]
                        const MaybeTensor& log_alpha, const MaybeTensor& log_theta,  // [B, T, H]
                        const Tensors& weights, const Tensors& momentum,
                        const Tensors& chunk_weights,  // each [N, H, out, in]
                        const MaybeTensor& k_tail,
                        const MaybeTensor& v_tail,          // [N, W-1, H, K], [N, W-1, H, V]
                        const MaybeTensor& position,        // [N]
                        const MaybeTensor& feature_scales,  // [degree + 1]
                        const MaybeTensor& ns_table,        // [ns_steps, 3]
                        const MaybeTensor& cu_seqlens,      // [N + 1]
                        const std::string& objective, const std::string& activation, bool residual,
                        int64_t degree, int64_t ns_steps, const std::string& ns_schedule,
                        const std::string& ns_scale, int64_t ns_every, int64_t chunk_size,
                        bool output_final_state, bool save_checkpoints, bool allow_tf32) {
  const OmegaCudaCall call("omega_rule", q, k, v, gamma, eta, log_alpha, log_theta, weights,
                           momentum, chunk_weights, k_tail, v_tail, position, feature_scales,
                           ns_table, cu_seqlens,
                           {objective, activation, residual, degree, ns_steps, ns_schedule,
                            ns_scale, ns_every, chunk_size});
  const OmegaShape& shape = call.shape;
  const CudaContext& cuda = call.cuda;
  const auto new_state = [&](float** data, const char* name) {
    Tensors state;
    for (int64_t l = 0; l < shape.matrices; ++l) {
      const std::vector<int64_t> sizes = matrix_shape(shape, l);
      state.push_back(torch::stable::new_empty(
          q, {shape.sequences, shape.heads, sizes[0], sizes[1]}, ScalarType::Float));
      data[l] = static_cast<float*>(cuda.write(state.back(), name));
    }
    return state;
  };
  const auto tail_tensor = [&](const MaybeTensor& given, const Tensor& tokens, int64_t width) {
    return torch::stable::new_empty(q, {shape.sequences, shape.window - 1, shape.heads, width},
                                    given ? given->scalar_type() : tokens.scalar_type());
  };
  Forward result{torch::stable::new_empty(v, {shape.batch, shape.tokens, shape.heads, shape.value}),
                 {},
                 {},
                 {},
                 torch::stable::new_empty(q, {0}),  // one each: outputs must not alias
                 torch::stable::new_empty(q, {0}),
                 torch::stable::new_empty(q, {0}, ScalarType::Long),
                 {}};
  auto& [o, final_weights, final_momentum, final_chunk, final_k, final_v, final_place,
         checkpoints] = result;
  cuda_kernels::OmegaForward args{};
  args.options = call.options;
  args.in = call.in;
  args.o = omega_result(cuda, call.op, o, "o");
  if (output_final_state) {
    final_weights = new_state(args.weights, "final_weights");
    final_chunk = new_state(args.chunk_weights, "final_chunk_weights");
    if (log_theta) final_momentum = new_state(args.momentum, "final_momentum");
    final_k = tail_tensor(k_tail, k, shape.key);
    final_v = tail_tensor(v_tail, v, shape.value);
    final_place = torch::stable::new_empty(q, {shape.sequences}, ScalarType::Long);
    args.k_tail = omega_result(cuda, call.op, final_k, "final_k_tail");
    args.v_tail = omega_result(cuda, call.op, final_v, "final_v_tail");
    args.position = static_cast<int64_t*>(cuda.write(final_place, "final_position"));
  }
  if (save_checkpoints) {
    for (float** saved : {args.weights_checkpoints, args.momentum_checkpoints}) {
      if (saved == args.momentum_checkpoints && !log_theta) break;
      for (int64_t l = 0; l < shape.matrices; ++l) {
        const std::vector<int64_t> sizes = matrix_shape(shape, l);
        checkpoints.push_back(torch::stable::new_empty(
            q, {call.checkpoints, shape.heads, sizes[1], sizes[0]}, ScalarType::Float));
        saved[l] = static_cast<float*>(cuda.write(checkpoints.back(), "checkpoints"));
      }
    }
  }
  if (call.items() == 0) return result;
  const cuda_kernels::OmegaPlan plan = cuda_kernels::omega_rule_plan(
      cuda_kernels::OmegaPass::forward, args.options, call.dtype, allow_tf32, call.items());
  const Tensor memory = omega_scratch(q, plan);
  args.space.device = static_cast<float*>(cuda.scratch(memory, "scratch"));
  check_launch(cuda_kernels::omega_rule(args, plan, cuda.stream()), call.op);
  return result;
}

}  // namespace

ATLAS_CUDA_LIBRARY_IMPL(library) { library.impl("omega_rule", TORCH_BOX(&omega_rule_cuda)); }

}  // namespace atlas::ops
