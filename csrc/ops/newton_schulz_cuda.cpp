#include <torch/csrc/stable/library.h>

#include "kernels/cuda/newton_schulz.h"
#include "ops/cuda_arguments.h"
#include "ops/newton_schulz.h"
#include "ops/newton_schulz_products.h"

namespace atlas::ops {
namespace {

namespace cuda_kernels = kernels::cuda;

// What a call asks for; the table, if there is one, is in device memory and stays there.
struct NewtonSchulzCall {
  const char* op;
  const Tensor& x;     // [..., m, n]
  const Tensor* grad;  // [..., m, n], backward only
  std::optional<Tensor> table;
  const std::string& schedule;
  int64_t steps;
  double factor, eps;
  bool allow_tf32;
};

// Elements that the large path works on at a time: it holds every iterate of these matrices.
constexpr int64_t kElementsAtATime = int64_t{1} << 24;

Tensor constant(const Tensor& like, double value) {
  return torch::stable::full({}, value, ScalarType::Float, std::nullopt, like.device());
}

// a, b, c of all steps as tensors without dimensions, on the device of x.
std::vector<Tensor> coefficients(const NewtonSchulzCall& call) {
  std::vector<Tensor> result;
  if (call.table.has_value()) {
    for (int64_t step = 0; step < call.steps; ++step)
      for (int64_t i = 0; i < 3; ++i)
        result.push_back(torch::stable::select(torch::stable::select(*call.table, 0, step), 0, i));
    return result;
  }
  for (const double value : schedule_rows(std::nullopt, call.schedule, call.steps))
    result.push_back(constant(call.x, value));
  return result;
}

Tensor run_products(const NewtonSchulzCall& call) {
  const int64_t m = call.x.size(call.x.dim() - 2), n = call.x.size(call.x.dim() - 1);
  const int64_t batch = call.x.numel() / (m * n);
  const Tensor out = torch::stable::empty_like(torch::stable::contiguous(call.x));
  Tensor flat_out = torch::stable::view(out, {batch, m, n});
  const auto part = [&](const Tensor& tensor, int64_t first, int64_t count) {
    Tensor flat = torch::stable::reshape(tensor, {batch, m, n});
    flat = torch::stable::narrow(flat, 0, first, count);
    return m > n ? flipped(flat) : flat;
  };
  const std::vector<Tensor> steps = coefficients(call);
  const Tensor eps = constant(call.x, call.eps), factor = constant(call.x, call.factor);
  const int64_t at_a_time = std::max<int64_t>(1, kElementsAtATime / (m * n));
  for (int64_t first = 0; first < batch; first += at_a_time) {
    const int64_t count = std::min(at_a_time, batch - first);
    NewtonSchulzProducts products(part(call.x, first, count), steps, eps);
    Tensor result = call.grad != nullptr ? products.backward(part(*call.grad, first, count))
                                         : products.forward();
    result = times(result, factor);
    Tensor target = torch::stable::narrow(flat_out, 0, first, count);
    torch::stable::copy_(target, m > n ? flipped(result) : result);
  }
  return out;
}

cuda_kernels::NewtonSchulzSchedule kernel_schedule(const NewtonSchulzCall& call) {
  cuda_kernels::NewtonSchulzSchedule schedule{};
  constexpr int64_t kRows = sizeof schedule.row / sizeof schedule.row[0];
  schedule.steps = static_cast<int>(call.steps);
  schedule.rows = static_cast<int>(std::min(call.steps, kRows));
  if (call.table.has_value()) return schedule;
  const std::vector<double> rows = schedule_rows(std::nullopt, call.schedule, schedule.rows);
  for (int64_t i = 0; i < 3 * schedule.rows; ++i)
    schedule.row[i / 3][i % 3] = static_cast<float>(rows[i]);
  return schedule;
}

Tensor run_fused(const NewtonSchulzCall& call, cuda_kernels::Dtype dtype, const CudaContext& cuda) {
  const int64_t m = call.x.size(call.x.dim() - 2), n = call.x.size(call.x.dim() - 1);
  const Tensor x = torch::stable::contiguous(call.x);
  const Tensor grad = call.grad != nullptr ? torch::stable::contiguous(*call.grad) : x;
  const Tensor out = torch::stable::empty_like(x);
  cuda_kernels::NewtonSchulz args{};
  args.dtype = dtype;
  args.x = cuda.read(x, "x");
  args.out = cuda.write(out, "out");
  args.batch = x.numel() / (m * n);
  args.m = static_cast<int>(m);
  args.n = static_cast<int>(n);
  args.scale = static_cast<float>(call.factor);
  args.eps = static_cast<float>(call.eps);
  args.allow_tf32 = call.allow_tf32;
  args.schedule = kernel_schedule(call);
  args.schedule.table = read_floats(cuda, call.table, "schedule");
  if (call.grad == nullptr) {
    check_launch(cuda_kernels::newton_schulz(args, cuda.stream()), call.op);
    return out;
  }
  args.grad = cuda.read(grad, "grad");
  const int64_t bytes = cuda_kernels::newton_schulz_scratch(args);
  const Tensor scratch = torch::stable::new_empty(x, {bytes}, ScalarType::Byte);
  args.scratch = cuda.scratch(scratch, "scratch");
  check_launch(cuda_kernels::newton_schulz_backward(args, cuda.stream()), call.op);
  return out;
}

Tensor run_newton_schulz(const NewtonSchulzCall& call) {
  const cuda_kernels::Dtype dtype = cuda_dtype(call.op, "x", call.x);
  if (call.x.numel() == 0) return torch::stable::empty_like(torch::stable::contiguous(call.x));
  const int64_t m = call.x.size(call.x.dim() - 2), n = call.x.size(call.x.dim() - 1);
  const CudaContext cuda(call.x);
  const bool fits_int = m * n <= std::numeric_limits<int>::max() / 2;
  return fits_int && cuda_kernels::newton_schulz_is_fused(dtype, static_cast<int>(m),
                                                          static_cast<int>(n), call.grad != nullptr)
             ? run_fused(call, dtype, cuda)
             : run_products(call);
}

Tensor newton_schulz_cuda(const Tensor& x,                     // [..., m, n]
                          const std::optional<Tensor>& table,  // [steps, 3]
                          std::string schedule, int64_t steps, std::string scale, double eps,
                          bool allow_tf32) {
  const char* op = "newton_schulz";
  check_newton_schulz(op, x, table, schedule, steps, scale, eps);
  const double factor = ns_factor(scale, x.size(x.dim() - 2), x.size(x.dim() - 1));
  return run_newton_schulz(
      {op, x, nullptr, float_copy(table), schedule, steps, factor, eps, allow_tf32});
}

Tensor newton_schulz_backward_cuda(const Tensor& grad,                  // [..., m, n]
                                   const Tensor& x,                     // [..., m, n]
                                   const std::optional<Tensor>& table,  // [steps, 3]
                                   std::string schedule, int64_t steps, std::string scale,
                                   double eps, bool allow_tf32) {
  const char* op = "newton_schulz_backward";
  check_newton_schulz(op, x, table, schedule, steps, scale, eps);
  check_newton_schulz_grad(op, grad, x);
  const double factor = ns_factor(scale, x.size(x.dim() - 2), x.size(x.dim() - 1));
  return run_newton_schulz(
      {op, x, &grad, float_copy(table), schedule, steps, factor, eps, allow_tf32});
}

}  // namespace

ATLAS_CUDA_LIBRARY_IMPL(library) {
  library.impl("newton_schulz", TORCH_BOX(&newton_schulz_cuda));
  library.impl("newton_schulz_backward", TORCH_BOX(&newton_schulz_backward_cuda));
}

}  // namespace atlas::ops
