#include "ops/newton_schulz.h"

#include <torch/csrc/stable/library.h>

#include "kernels/cpu/newton_schulz.h"
#include "ops/dispatch.h"
#include "ops/newton_schulz_large.h"

namespace atlas::ops {
namespace {

namespace cpu = kernels::cpu;

// Threads take whole matrices with min(m, n) up to kLargestAlone, and up to kLargestBatched where
// there is one for every thread; they share the products of one matrix after the other up to
// kLargestShared. Beyond that, where scratch for the backward would be large, torch's matmul.
constexpr int64_t kLargestAlone = 192, kLargestBatched = 512, kLargestShared = 1024;

// Matrices one by one, transposed so that rows <= columns; grads is x's own in the forward.
Tensor run_large(const Tensor& x,     // [batch, m, n], contiguous
                 const Tensor* grad,  // [batch, m, n]
                 const cpu::NewtonSchulz& options) {
  const int64_t m = x.size(1), n = x.size(2);
  Tensor out = torch::stable::empty_like(x);
  const auto rows_first = [&](const Tensor& all, int64_t i) {
    const Tensor one = torch::stable::to(torch::stable::select(all, 0, i), compute_type(x));
    return torch::stable::contiguous(m > n ? torch::stable::transpose(one, 0, 1) : one);
  };
  for (int64_t i = 0; i < x.size(0); ++i) {
    LargeNewtonSchulz problem(rows_first(x, i), options);
    Tensor target = torch::stable::select(out, 0, i);
    if (problem.is_zero()) {
      torch::stable::zero_(target);
      continue;
    }
    const Tensor result =
        grad != nullptr ? problem.backward(rows_first(*grad, i)) : problem.forward(false);
    torch::stable::copy_(target, m > n ? torch::stable::transpose(result, 0, 1) : result);
  }
  return out;
}

Tensor run_newton_schulz(const Tensor& x,     // [..., m, n]
                         const Tensor* grad,  // [..., m, n], backward only
                         const std::optional<Tensor>& table, const std::string& schedule,
                         int64_t steps, const std::string& scale, double eps) {
  if (x.numel() == 0) return torch::stable::empty_like(torch::stable::contiguous(x));
  const int64_t m = x.size(x.dim() - 2), n = x.size(x.dim() - 1), batch = x.numel() / (m * n);
  const std::vector<double> rows = schedule_rows(table, schedule, steps);
  const cpu::NewtonSchulz options{rows.data(), static_cast<int>(steps), ns_factor(scale, m, n),
                                  eps};
  const Tensor matrices = torch::stable::contiguous(x);
  const Tensor grads = grad != nullptr ? torch::stable::contiguous(*grad) : matrices;
  const cpu::ParallelFor parallel = torch_threads();
  const int64_t side = std::min(m, n);
  if (side > kLargestShared) {
    const Tensor flat = torch::stable::view(grads, {batch, m, n});
    const Tensor out = run_large(torch::stable::view(matrices, {batch, m, n}),
                                 grad != nullptr ? &flat : nullptr, options);
    return torch::stable::view(out, x.sizes());
  }
  const bool is_double = compute_type(x) == ScalarType::Double;
  const bool backward = grad != nullptr;
  const Tensor out = torch::stable::empty_like(matrices);
  const bool one_by_one = side > (batch < parallel.threads() ? kLargestAlone : kLargestBatched);
  const int64_t tasks = one_by_one ? 1 : parallel.tasks(batch);
  const Tensor memory =
      scratch(x, cpu::newton_schulz_batch_scratch(m, n, options.steps, backward, is_double, tasks));
  const cpu::NewtonSchulzBatch args{
      array(matrices),           array(grads), mutable_array(out), batch, m, n, options,
      memory.mutable_data_ptr(), is_double,    one_by_one};
  backward ? cpu::newton_schulz_batch_backward(args, parallel)
           : cpu::newton_schulz_batch(args, parallel);
  return out;
}

Tensor newton_schulz_cpu(const Tensor& x,                     // [..., m, n]
                         const std::optional<Tensor>& table,  // [steps, 3]
                         std::string schedule, int64_t steps, std::string scale, double eps,
                         [[maybe_unused]] bool allow_tf32) {
  check_newton_schulz("newton_schulz", x, table, schedule, steps, scale, eps);
  return run_newton_schulz(x, nullptr, table, schedule, steps, scale, eps);
}

Tensor newton_schulz_backward_cpu(const Tensor& grad,                  // [..., m, n]
                                  const Tensor& x,                     // [..., m, n]
                                  const std::optional<Tensor>& table,  // [steps, 3]
                                  std::string schedule, int64_t steps, std::string scale,
                                  double eps, [[maybe_unused]] bool allow_tf32) {
  const char* op = "newton_schulz_backward";
  check_newton_schulz(op, x, table, schedule, steps, scale, eps);
  check_newton_schulz_grad(op, grad, x);
  return run_newton_schulz(x, &grad, table, schedule, steps, scale, eps);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(atlas_ext, CPU, library) {
  library.impl("newton_schulz", TORCH_BOX(&newton_schulz_cpu));
  library.impl("newton_schulz_backward", TORCH_BOX(&newton_schulz_backward_cpu));
}

}  // namespace atlas::ops
