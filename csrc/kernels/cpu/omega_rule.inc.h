// The Omega rule (docs/math/omega_rule.md). An item is a (sequence, head): its
// chunks come one after the other, its state is in scratch. Items are dealt to tasks round-robin.
#include "kernels/cpu/omega_backward.h"
#include "kernels/cpu/omega_forward.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

// Elements in front of the tasks' own memory: the roots of the polynomial map.
template <class T>
int64_t shared_elements(const OmegaOptions& options) {
  return options.degree == 0 ? 0 : padded<T>(options.features()) + 2 * kWidth<T>;
}

template <class T>
PolyMap<T> poly_map(const OmegaOptions& options, T* memory) {
  PolyMap<T> map{};
  if (options.degree > 0)
    poly_map_init(map, memory, options.key_dim, options.degree, options.scales, options.roots);
  return map;
}

template <class T>
int64_t task_elements(const OmegaOptions& options, const OmegaInputs& in, bool backward) {
  const Sizes sz = sizes_of<T>(options, in);
  Arena<T> arena(nullptr);
  if (backward)
    BackwardTask<T>(arena, sz, options, static_cast<bool>(in.log_theta));
  else
    ForwardTask<T>(arena, sz, options);
  return arena.used();
}

template <class T>
void run_forward(const OmegaForward& args, const ParallelFor& parallel) {
  const Sizes sz = sizes_of<T>(args.options, args.in);
  const int64_t items = args.in.num_sequences * args.options.heads, tasks = parallel.tasks(items);
  const int64_t each = task_elements<T>(args.options, args.in, false);
  T* memory = static_cast<T*>(args.scratch);
  const PolyMap<T> map = poly_map<T>(args.options, memory);
  memory += shared_elements<T>(args.options);
  parallel(tasks, [&](int64_t task) {
    Arena<T> arena(memory + task * each);
    ForwardTask<T> work(arena, sz, args.options);
    forward_items(args, sz, map, work, task, items, tasks);
  });
}

template <class T>
void run_backward(const OmegaBackward& args, const ParallelFor& parallel) {
  const Sizes sz = sizes_of<T>(args.options, args.in);
  const int64_t items = args.in.num_sequences * args.options.heads, tasks = parallel.tasks(items);
  const int64_t each = task_elements<T>(args.options, args.in, true);
  T* memory = static_cast<T*>(args.scratch);
  const PolyMap<T> map = poly_map<T>(args.options, memory);
  memory += shared_elements<T>(args.options);
  parallel(tasks, [&](int64_t task) {
    Arena<T> arena(memory + task * each);
    BackwardTask<T> work(arena, sz, args.options, static_cast<bool>(args.in.log_theta));
    const bool scales = args.grad_scales != nullptr;
    work.grads.wants_u = scales || args.grad_q.data != nullptr;
    work.grads.wants_x = scales || args.grad_k.data != nullptr || args.grad_k_tail.data != nullptr;
    for (int64_t item = task; item < items; item += tasks)
      backward_item(args, sz, map, work, item / args.options.heads, item % args.options.heads);
  });
}

template <class T>
int64_t scratch_elements(const OmegaOptions& options, const OmegaInputs& in, bool backward,
                         const ParallelFor& parallel) {
  return shared_elements<T>(options) +
         parallel.tasks(in.num_sequences * options.heads) * task_elements<T>(options, in, backward);
}

}  // namespace

int64_t omega_rule_scratch(const OmegaOptions& options, const OmegaInputs& in, bool backward,
                           const ParallelFor& parallel) {
  return options.is_double ? scratch_elements<double>(options, in, backward, parallel)
                           : scratch_elements<float>(options, in, backward, parallel);
}

void omega_rule(const OmegaForward& args, const ParallelFor& parallel) {
  args.options.is_double ? run_forward<double>(args, parallel) : run_forward<float>(args, parallel);
}

void omega_rule_backward(const OmegaBackward& args, const ParallelFor& parallel) {
  args.options.is_double ? run_backward<double>(args, parallel)
                         : run_backward<float>(args, parallel);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
