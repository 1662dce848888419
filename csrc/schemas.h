#pragma once
// ALL operator schemas: the table of contents of the C++ side. Namespace atlas_ext has them, and
// atlas_ext_emulated, whose operators are the CUDA ones on CPU tensors (docs/emulation.md).
#include <torch/csrc/stable/library.h>

namespace atlas {

inline void define_schemas(torch::stable::detail::StableLibrary& library) {
  library.def("build_info() -> str");
  library.def("cuda_code_architecture(int device) -> int");
  library.def("cuda_plan(str op, str dtype, int[] sizes, bool allow_tf32, int capability) -> str");

  library.def("poly_features(Tensor x, Tensor? scales, int degree) -> Tensor");
  library.def(
      "poly_features_backward(Tensor grad, Tensor x, Tensor? scales, int degree, int grad_mask)"
      " -> (Tensor grad_x, Tensor grad_scales)");

  library.def(
      "newton_schulz(Tensor x, Tensor? table, str schedule, int steps, str scale, float eps,"
      " bool allow_tf32) -> Tensor");
  library.def(
      "newton_schulz_backward(Tensor grad, Tensor x, Tensor? table, str schedule, int steps,"
      " str scale, float eps, bool allow_tf32) -> Tensor");

  // omega_options: what forward, backward and update share. Empty lists stand for absent memories.
#define OMEGA_OPTIONS                                                                        \
  "str objective, str activation, bool residual, int degree, int ns_steps, str ns_schedule," \
  " str ns_scale, int ns_every, int chunk_size"
#define OMEGA_INPUTS                                                                              \
  "Tensor q, Tensor k, Tensor v, Tensor gamma, Tensor eta, Tensor? log_alpha, Tensor? log_theta," \
  " Tensor[] weights, Tensor[] momentum, Tensor[] chunk_weights, Tensor? k_tail, Tensor? v_tail," \
  " Tensor? position, Tensor? feature_scales, Tensor? ns_table, Tensor? cu_seqlens"
  library.def("omega_rule(" OMEGA_INPUTS ", " OMEGA_OPTIONS
              ", bool output_final_state, bool save_checkpoints, bool allow_tf32)"
              " -> (Tensor o, Tensor[] final_weights, Tensor[] final_momentum,"
              " Tensor[] final_chunk_weights, Tensor final_k_tail, Tensor final_v_tail,"
              " Tensor final_position, Tensor[] checkpoints)");
  library.def(
      "omega_rule_backward(Tensor? grad_o, Tensor[] grad_weights, Tensor[] grad_momentum,"
      " Tensor[] grad_chunk_weights, Tensor? grad_k_tail, Tensor? grad_v_tail,"
      " Tensor[] checkpoints, " OMEGA_INPUTS ", " OMEGA_OPTIONS
      ", bool output_final_state, int grad_mask, bool allow_tf32)"
      " -> (Tensor[] grads, Tensor[] grad_weights, Tensor[] grad_momentum, Tensor[] "
      "grad_chunk_weights)");
  library.def(
      "omega_rule_update(Tensor q, Tensor k, Tensor v, Tensor gamma, Tensor eta, Tensor? log_alpha,"
      " Tensor? log_theta, Tensor(a!)[] weights, Tensor(b!)[] momentum, Tensor(c!)[] chunk_weights,"
      " Tensor(d!) k_tail, Tensor(e!) v_tail, Tensor(f!) position, Tensor? state_indices,"
      " Tensor? feature_scales, Tensor? ns_table, " OMEGA_OPTIONS ", bool allow_tf32) -> Tensor");

  // Rows of all tokens take the place of the matrices that see the map; momentum and chunk_weights
  // hold those of the rows first. The final state has room for T + extra_rows tokens; None: no such
  // state.
#define EXP_OMEGA_OPTIONS \
  "str objective, str activation, bool residual, str normalize, float scale, int chunk_size"
#define EXP_OMEGA_INPUTS                                                                          \
  "Tensor q, Tensor k, Tensor v, Tensor gamma, Tensor eta, Tensor? log_alpha, Tensor? log_theta," \
  " Tensor[] weights, Tensor? keys, Tensor[] coefficients, Tensor[] momentum,"                    \
  " Tensor[] chunk_weights, Tensor? k_tail, Tensor? v_tail, Tensor? position, Tensor? cu_seqlens"
  library.def("exp_omega_rule(" EXP_OMEGA_INPUTS ", " EXP_OMEGA_OPTIONS
              ", int? extra_rows, bool save_for_backward, bool allow_tf32)"
              " -> (Tensor o, Tensor final_keys, Tensor[] final_coefficients,"
              " Tensor[] final_momentum, Tensor[] final_weights, Tensor[] final_chunk_weights,"
              " Tensor final_k_tail, Tensor final_v_tail, Tensor final_position, Tensor[] saved)");
  library.def(
      "exp_omega_rule_backward(Tensor? grad_o, Tensor? grad_keys, Tensor[] grad_coefficients,"
      " Tensor[] grad_momentum, Tensor[] grad_weights, Tensor[] grad_chunk_weights,"
      " Tensor? grad_k_tail, Tensor? grad_v_tail, Tensor[] saved, " EXP_OMEGA_INPUTS
      ", " EXP_OMEGA_OPTIONS
      ", int? extra_rows, int grad_mask, bool allow_tf32)"
      " -> (Tensor[] grads, Tensor[] grad_weights, Tensor[] grad_coefficients,"
      " Tensor[] grad_momentum, Tensor[] grad_chunk_weights)");
  library.def(
      "exp_omega_rule_update(Tensor q, Tensor k, Tensor v, Tensor gamma, Tensor eta,"
      " Tensor? log_alpha, Tensor? log_theta, Tensor(a!)[] weights, Tensor(b!) keys,"
      " Tensor(c!)[] coefficients, Tensor(d!)[] momentum, Tensor(e!)[] chunk_weights,"
      " Tensor(f!) k_tail, Tensor(g!) v_tail, Tensor(h!) position, " EXP_OMEGA_OPTIONS
      ") -> Tensor");
#undef EXP_OMEGA_INPUTS
#undef EXP_OMEGA_OPTIONS
#undef OMEGA_INPUTS
#undef OMEGA_OPTIONS
}

}  // namespace atlas
