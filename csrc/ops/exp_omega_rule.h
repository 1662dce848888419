#pragma once
// Arguments of the exponential Omega rule's operators: checked, and turned into what the CPU
// kernels take.
#include "kernels/cpu/exp_omega_rule.h"
#include "ops/omega_rule_cpu.h"

namespace atlas::ops {

// The options in the order of the schemas.
struct ExpOmegaRuleOptions {
  const std::string& objective;
  const std::string& activation;
  bool residual;
  const std::string& normalize;
  double scale;
  int64_t chunk_size;
};

// A state, or the weights alone; the lists are in the order of ExpOmegaState.
struct ExpOmegaStateArguments {
  const Tensors& weights;
  const MaybeTensor& keys;
  const Tensors& coefficients;
  const Tensors& momentum;
  const Tensors& chunk_weights;
  const MaybeTensor& k_tail;
  const MaybeTensor& v_tail;
  const MaybeTensor& position;
};

// The letters of a call; its matrices are W0, W0g and W2, none of a linear memory.
struct ExpOmegaShape {
  OmegaShape omega;
  int64_t sets = 1, row = 0;  // rows of one token, and their width
  int64_t capacity = 0;       // tokens the state that comes in has room for

  bool deep() const { return omega.hidden > 0; }
  size_t matrices() const { return deep() ? static_cast<size_t>(omega.matrices) : 0; }
};

// Checks all but tokens and options; `prefix` is how the caller names the state.
ExpOmegaShape check_exp_state(const char* op, const std::string& prefix, const OmegaShape& letters,
                              const ExpOmegaStateArguments& state, const Tensor& q);

// Checks the tokens and options, `lead` as check_tokens has it, and returns the letters.
void check_exp_options(const char* op, const ExpOmegaRuleOptions& given, const Tensor& q,
                       const Tensor& v);

kernels::cpu::ExpOmegaOptions exp_options(const ExpOmegaShape& shape,
                                          const ExpOmegaRuleOptions& given, const Tensor& q);

// Views of the state, whose rows go on beyond the letters of the tokens.
void exp_state_views(kernels::cpu::ExpOmegaInputs& in, const ExpOmegaShape& shape,
                     const ExpOmegaStateArguments& state);

// All that the schema gives forward and backward alike.
struct ExpOmegaCall {
  ExpOmegaShape shape;
  kernels::cpu::ExpOmegaOptions options;
  kernels::cpu::ExpOmegaInputs in;
  int64_t chunks, window_rows;  // upper bounds that follow from shapes alone

  ExpOmegaCall(const char* op, const Tensor& q, const Tensor& k, const Tensor& v,
               const Tensor& gamma, const Tensor& eta, const MaybeTensor& log_alpha,
               const MaybeTensor& log_theta, const ExpOmegaStateArguments& state,
               const MaybeTensor& cu_seqlens, const ExpOmegaRuleOptions& given);
  ExpOmegaCall(const ExpOmegaCall&) = delete;
  ExpOmegaCall& operator=(const ExpOmegaCall&) = delete;

  // Shapes of the list `saved`, none where a tensor is not needed.
  std::vector<std::vector<int64_t>> saved_shapes() const;
  kernels::cpu::ExpOmegaSaved saved(const Tensors& tensors) const;

 private:
  std::vector<kernels::cpu::OmegaSequence> sequences_;
};

}  // namespace atlas::ops
