// The exponential Omega rule (docs/math/exp_omega_rule.md). An item is a (sequence, head): its
// chunks come one after the other, its rows are in scratch. Items are dealt to tasks round-robin.
#include "kernels/cpu/exp_omega_backward.h"
#include "kernels/cpu/exp_omega_forward.h"
#include "kernels/cpu/exp_omega_update.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

template <class T>
int64_t task_elements(const ExpOmegaOptions& options, const ExpOmegaInputs& in, bool backward) {
  const ExpSizes x = exp_sizes<T>(options, in);
  Arena<T> arena(nullptr);
  const bool own = static_cast<bool>(in.reference[0]);
  if (backward)
    ExpBackwardTask<T>(arena, x, options, own);
  else
    ExpTask<T>(arena, x, options, own);
  return arena.used();
}

// Calls item(x, task, n, head) for every sequence and head.
template <class T, class Args, class Item>
void run_items(const Args& args, const ParallelFor& parallel, const Item& item) {
  const ExpSizes x = exp_sizes<T>(args.options, args.in);
  const int64_t heads = args.options.omega.heads, items = args.in.omega.num_sequences * heads;
  const int64_t tasks = parallel.tasks(items);
  const int64_t each = task_elements<T>(args.options, args.in, false);
  parallel(tasks, [&](int64_t number) {
    Arena<T> arena(static_cast<T*>(args.scratch) + number * each);
    ExpTask<T> task(arena, x, args.options, static_cast<bool>(args.in.reference[0]));
    for (int64_t i = number; i < items; i += tasks) item(x, task, i / heads, i % heads);
  });
}

template <class T>
void run_forward(const ExpOmegaForward& args, const ParallelFor& parallel) {
  run_items<T>(args, parallel, [&](const ExpSizes& x, ExpTask<T>& task, int64_t n, int64_t head) {
    forward_item(args, x, task, n, head);
  });
}

template <class T>
void run_update(const ExpOmegaUpdate& args, const ParallelFor& parallel) {
  run_items<T>(args, parallel, [&](const ExpSizes& x, ExpTask<T>& task, int64_t n, int64_t head) {
    update_item(args, x, task, n, head);
  });
}

template <class T>
void run_backward(const ExpOmegaBackward& args, const ParallelFor& parallel) {
  const ExpSizes x = exp_sizes<T>(args.options, args.in);
  const int64_t heads = args.options.omega.heads, items = args.in.omega.num_sequences * heads;
  const int64_t tasks = parallel.tasks(items);
  const int64_t each = task_elements<T>(args.options, args.in, true);
  parallel(tasks, [&](int64_t number) {
    Arena<T> arena(static_cast<T*>(args.scratch) + number * each);
    ExpBackwardTask<T> task(arena, x, args.options, static_cast<bool>(args.in.reference[0]));
    task.grads.wants_u = args.grad_q.data != nullptr;
    task.grads.wants_x = args.grad_k.data != nullptr || args.grad_keys.data != nullptr ||
                         args.grad_k_tail.data != nullptr;
    for (int64_t item = number; item < items; item += tasks)
      backward_item(args, x, task, item / heads, item % heads);
  });
}

}  // namespace

int64_t exp_omega_rule_scratch(const ExpOmegaOptions& options, const ExpOmegaInputs& in,
                               bool backward, const ParallelFor& parallel) {
  const int64_t tasks = parallel.tasks(in.omega.num_sequences * options.omega.heads);
  return tasks * (options.omega.is_double ? task_elements<double>(options, in, backward)
                                          : task_elements<float>(options, in, backward));
}

void exp_omega_rule(const ExpOmegaForward& args, const ParallelFor& parallel) {
  args.options.omega.is_double ? run_forward<double>(args, parallel)
                               : run_forward<float>(args, parallel);
}

void exp_omega_rule_backward(const ExpOmegaBackward& args, const ParallelFor& parallel) {
  args.options.omega.is_double ? run_backward<double>(args, parallel)
                               : run_backward<float>(args, parallel);
}

void exp_omega_update(const ExpOmegaUpdate& args, const ParallelFor& parallel) {
  args.options.omega.is_double ? run_update<double>(args, parallel)
                               : run_update<float>(args, parallel);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
