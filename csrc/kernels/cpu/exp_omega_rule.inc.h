// The exponential Omega rule (docs/math/exp_omega_rule.md). An item is a (sequence, head): its
// chunks come one after the other, its rows are in scratch. Items are dealt to tasks round-robin.
#include "kernels/cpu/exp_omega_backward.h"
#include "kernels/cpu/exp_omega_forward.h"
#include "kernels/cpu/exp_omega_update.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

template <class T>
int64_t forward_elements(const ExpOmegaOptions& options, const ExpOmegaInputs& in) {
  Arena<T> arena(nullptr);
  ExpTask<T>(arena, exp_sizes<T>(options, in), options, static_cast<bool>(in.reference[0]));
  return arena.used();
}

template <class T>
int64_t backward_elements(const ExpOmegaOptions& options, const ExpOmegaInputs& in) {
  Arena<T> arena(nullptr);
  ExpBackwardTask<T>(arena, exp_sizes<T>(options, in), options, static_cast<bool>(in.reference[0]));
  return arena.used();
}

template <class T>
int64_t update_elements(const ExpOmegaOptions& options, const ExpOmegaInputs& in) {
  Arena<T> arena(nullptr);
  ExpUpdateTask<T>(arena, update_sizes<T>(options, in), options);
  return arena.used();
}

inline int64_t items_of(const ExpOmegaOptions& options, const ExpOmegaInputs& in) {
  return in.omega.num_sequences * options.omega.heads;
}

// Calls work(arena, first item, step) in every task, with `each` elements of scratch memory.
template <class T, class Args, class Work>
void deal(const Args& args, const ParallelFor& parallel, int64_t each, const Work& work) {
  const int64_t tasks = parallel.tasks(items_of(args.options, args.in));
  parallel(tasks, [&](int64_t number) {
    Arena<T> arena(static_cast<T*>(args.scratch) + number * each);
    work(arena, number, tasks);
  });
}

template <class T>
void run_forward(const ExpOmegaForward& args, const ParallelFor& parallel) {
  const ExpSizes x = exp_sizes<T>(args.options, args.in);
  const int64_t heads = args.options.omega.heads, items = items_of(args.options, args.in);
  const int64_t each = forward_elements<T>(args.options, args.in);
  deal<T>(args, parallel, each, [&](Arena<T>& arena, int64_t first, int64_t step) {
    ExpTask<T> task(arena, x, args.options, static_cast<bool>(args.in.reference[0]));
    for (int64_t item = first; item < items; item += step)
      forward_item(args, x, task, item / heads, item % heads);
  });
}

template <class T>
void run_backward(const ExpOmegaBackward& args, const ParallelFor& parallel) {
  const ExpSizes x = exp_sizes<T>(args.options, args.in);
  const int64_t heads = args.options.omega.heads, items = items_of(args.options, args.in);
  const int64_t each = backward_elements<T>(args.options, args.in);
  deal<T>(args, parallel, each, [&](Arena<T>& arena, int64_t first, int64_t step) {
    ExpBackwardTask<T> task(arena, x, args.options, static_cast<bool>(args.in.reference[0]));
    task.grads.wants_u = args.grad_q.data != nullptr;
    task.grads.wants_x = args.grad_k.data != nullptr || args.grad_keys.data != nullptr ||
                         args.grad_k_tail.data != nullptr;
    for (int64_t item = first; item < items; item += step)
      backward_item(args, x, task, item / heads, item % heads);
  });
}

template <class T>
void run_update(const ExpOmegaUpdate& args, const ParallelFor& parallel) {
  const ExpSizes x = update_sizes<T>(args.options, args.in);
  const int64_t heads = args.options.omega.heads, items = items_of(args.options, args.in);
  const int64_t each = update_elements<T>(args.options, args.in);
  deal<T>(args, parallel, each, [&](Arena<T>& arena, int64_t first, int64_t step) {
    ExpUpdateTask<T> task(arena, x, args.options);
    for (int64_t item = first; item < items; item += step)
      update_item(args, x, task, item / heads, item % heads);
  });
}

template <class T>
int64_t elements(ExpOmegaPass pass, const ExpOmegaOptions& options, const ExpOmegaInputs& in) {
  return pass == ExpOmegaPass::forward    ? forward_elements<T>(options, in)
         : pass == ExpOmegaPass::backward ? backward_elements<T>(options, in)
                                          : update_elements<T>(options, in);
}

}  // namespace

int64_t exp_omega_rule_scratch(ExpOmegaPass pass, const ExpOmegaOptions& options,
                               const ExpOmegaInputs& in, const ParallelFor& parallel) {
  return parallel.tasks(items_of(options, in)) * (options.omega.is_double
                                                      ? elements<double>(pass, options, in)
                                                      : elements<float>(pass, options, in));
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
