#pragma once
// From the tensors of the omega rule's operators to what the CPU kernels take.
#include <torch/csrc/stable/ops.h>

#include <memory>

#include "kernels/cpu/omega_rule.h"
#include "ops/dispatch.h"
#include "ops/omega_rule_outputs.h"

namespace atlas::ops {

inline kernels::cpu::Strided strided(const Tensor& tensor) {
  kernels::cpu::Strided view;
  view.array = array(tensor);
  view.present = true;
  for (int64_t i = 0; i < tensor.dim(); ++i) view.stride[i] = tensor.stride(i);
  return view;
}

inline kernels::cpu::Strided strided(const MaybeTensor& tensor) {
  return tensor ? strided(*tensor) : kernels::cpu::Strided();
}

// A memory's matrices; an empty list leaves all absent.
inline void strided_each(kernels::cpu::Strided* views, const Tensors& matrices) {
  for (size_t l = 0; l < matrices.size(); ++l) views[l] = strided(matrices[l]);
}

// How results are made for new_outputs and new_gradients.
inline void point_to(kernels::cpu::MutableArray& target, const Tensor& tensor) {
  target = mutable_array(tensor);
}
inline void point_to(void*& target, const Tensor& tensor) { target = tensor.mutable_data_ptr(); }

constexpr auto new_kernel_result = [](auto& target, const char*, const Tensor& like,
                                      const std::vector<int64_t>& shape, ScalarType type,
                                      bool zero = false) {
  Tensor result = new_result(like, shape, type);
  if (zero) torch::stable::zero_(result);
  point_to(target, result);
  return result;
};

// The kernels' options, with what they point to.
struct OmegaCpuOptions {
  kernels::cpu::OmegaOptions options;

  OmegaCpuOptions(const OmegaShape& shape, const OmegaRuleOptions& given,
                  const MaybeTensor& feature_scales, const MaybeTensor& ns_table, ScalarType sums);
  OmegaCpuOptions(const OmegaCpuOptions&) = delete;
  OmegaCpuOptions& operator=(const OmegaCpuOptions&) = delete;

 private:
  std::vector<double> roots_, schedule_;
};

// The sequences of a call; cu_seqlens and positions are read, and checked for what they hold.
std::vector<kernels::cpu::OmegaSequence> sequences_of(const char* op, const OmegaShape& shape,
                                                      int64_t chunk, const MaybeTensor& position,
                                                      const MaybeTensor& cu_seqlens);

// All that the schema gives forward and backward alike, checked, with what the kernels point to
// kept alive.
struct OmegaCall {
  OmegaShape shape;
  std::unique_ptr<OmegaCpuOptions> held;
  kernels::cpu::OmegaInputs in;
  int64_t checkpoints;  // an upper bound that follows from shapes alone

  const kernels::cpu::OmegaOptions& options() const { return held->options; }

  OmegaCall(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& gamma,
            const Tensor& eta, const MaybeTensor& log_alpha, const MaybeTensor& log_theta,
            const Tensors& weights, const Tensors& momentum, const Tensors& chunk_weights,
            const MaybeTensor& k_tail, const MaybeTensor& v_tail, const MaybeTensor& position,
            const MaybeTensor& feature_scales, const MaybeTensor& ns_table,
            const MaybeTensor& cu_seqlens, const OmegaRuleOptions& given);
  OmegaCall(const OmegaCall&) = delete;
  OmegaCall& operator=(const OmegaCall&) = delete;

 private:
  std::vector<kernels::cpu::OmegaSequence> sequences_;
};

}  // namespace atlas::ops
