#include "ops/exp_omega_rule.h"

#include <torch/csrc/stable/library.h>

namespace atlas::ops {
namespace {

namespace cpu = kernels::cpu;

using Forward =
    std::tuple<Tensor, Tensor, Tensors, Tensors, Tensors, Tensors, Tensor, Tensor, Tensor, Tensors>;

Tensor final_position(const Tensor& like, const cpu::OmegaInputs& in) {
  const Tensor position = torch::stable::new_empty(like, {in.num_sequences}, ScalarType::Long);
  for (int64_t n = 0; n < in.num_sequences; ++n) {
    const cpu::OmegaSequence& sequence = in.sequences[n];
    position.mutable_data_ptr<int64_t>()[n] = sequence.position + sequence.end - sequence.begin;
  }
  return position;
}

// Allocates the final state into `result` and points `args` at it.
void new_final_state(Forward& result, cpu::ExpOmegaForward& args, const ExpOmegaCall& call,
                     const Tensor& q, const MaybeTensor& keys, const MaybeTensor& k_tail,
                     const MaybeTensor& v_tail) {
  auto& [o, final_keys, coefficients, momentum, weights, chunk_weights, final_k, final_v, position,
         saved] = result;
  const OmegaShape& letters = call.shape.omega;
  const ScalarType sums = compute_type(q);
  const auto tensor = [&](const std::vector<int64_t>& shape, ScalarType type) {
    return torch::stable::new_empty(q, shape, type);
  };
  const auto type_of = [&](const MaybeTensor& given) {
    return given ? given->scalar_type() : q.scalar_type();
  };
  const auto rows = [&](cpu::MutableArray& array) {
    const Tensor found =
        tensor({letters.sequences, args.capacity, letters.heads, call.shape.row}, sums);
    array = mutable_array(found);
    return found;
  };
  const auto matrix = [&](int64_t l, cpu::MutableArray& array) {
    const std::vector<int64_t> sizes = matrix_shape(letters, l);
    const Tensor found = tensor({letters.sequences, letters.heads, sizes[0], sizes[1]}, sums);
    array = mutable_array(found);
    return found;
  };
  final_keys =
      tensor({letters.sequences, args.capacity, letters.heads, letters.key}, type_of(keys));
  args.keys = mutable_array(final_keys);
  for (int64_t set = 0; set < call.shape.sets; ++set) {
    coefficients.push_back(rows(args.coefficients[set]));
    chunk_weights.push_back(rows(args.reference[set]));
    if (args.in.omega.log_theta) momentum.push_back(rows(args.momentum[set]));
  }
  const auto matrices = static_cast<int64_t>(call.shape.matrices());
  for (int64_t l = 0; l < matrices; ++l) {
    weights.push_back(matrix(l, args.weights[l]));
    chunk_weights.push_back(matrix(l, args.chunk_weights[l]));
  }
  if (args.in.omega.log_theta && matrices > 0)
    momentum.push_back(matrix(matrices - 1, args.weights_momentum));
  const int64_t tail = letters.window - 1;
  final_k = tensor({letters.sequences, tail, letters.heads, letters.key}, type_of(k_tail));
  final_v = tensor({letters.sequences, tail, letters.heads, letters.value}, type_of(v_tail));
  args.k_tail = mutable_array(final_k);
  args.v_tail = mutable_array(final_v);
  position = final_position(q, args.in.omega);
}

Forward exp_omega_rule_cpu(
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
    std::optional<int64_t> extra_rows, bool save_for_backward) {
  const ExpOmegaCall call(
      "exp_omega_rule", q, k, v, gamma, eta, log_alpha, log_theta,
      {weights, keys, coefficients, momentum, chunk_weights, k_tail, v_tail, position}, cu_seqlens,
      {objective, activation, residual, normalize, scale, chunk_size});
  const OmegaShape& letters = call.shape.omega;
  const auto nothing = [&](ScalarType type) {  // one each: outputs must not alias
    return torch::stable::new_empty(q, {0}, type);
  };
  Forward result{
      new_result(v, {letters.batch, letters.tokens, letters.heads, letters.value}, v.scalar_type()),
      nothing(q.scalar_type()),
      {},
      {},
      {},
      {},
      nothing(q.scalar_type()),
      nothing(q.scalar_type()),
      nothing(ScalarType::Long),
      {}};
  cpu::ExpOmegaForward args{};
  args.options = call.options;
  args.in = call.in;
  args.o = mutable_array(std::get<0>(result));
  args.capacity = extra_rows ? letters.tokens + *extra_rows : -1;
  if (extra_rows) {
    for (int64_t n = 0; n < letters.sequences; ++n) {
      const cpu::OmegaSequence& sequence = args.in.omega.sequences[n];
      const int64_t seen = sequence.position + sequence.end - sequence.begin;
      ATLAS_CHECK(seen <= args.capacity, "exp_omega_rule", "initial_state.length",
                  "what makes room for all tokens, " + std::to_string(seen),
                  "room for " + std::to_string(args.capacity));
    }
    new_final_state(result, args, call, q, keys, k_tail, v_tail);
  }
  Tensors& saved = std::get<9>(result);
  if (save_for_backward) {
    // Zeros: chunks are counted from above, and an output must not hold what nobody wrote.
    for (const std::vector<int64_t>& shape : call.saved_shapes())
      saved.push_back(torch::stable::new_zeros(q, shape, compute_type(q)));
    args.saved = call.saved(saved);
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
