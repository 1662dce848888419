// Newton-Schulz of a batch of matrices (spec section 4). Matrices are dealt to tasks in contiguous
// runs; each task converts one matrix into scratch, works on it there (newton_schulz_tile.h) and
// stores it converted.
#include "kernels/cpu/newton_schulz_tile.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

template <class T>
int64_t task_size(int64_t m, int64_t n, int steps, bool backward) {
  return newton_schulz_scratch<T>(m, n, steps, backward) + (backward ? 2 : 1) * m * padded<T>(n);
}

// dst [m, padded(n)] = matrix `index` of src [batch, m, n], padding zero.
template <class T>
void load_matrix(T* dst, const Array& src, int64_t index, int64_t m, int64_t n) {
  const int64_t ld = padded<T>(n);
  for (int64_t i = 0; i < m; ++i) {
    load_array(dst + i * ld, src, (index * m + i) * n, n, 1);
    fill_zero(dst + i * ld + n, ld - n);
  }
}

template <class T>
void store_matrix(const MutableArray& dst, int64_t index, const T* src, int64_t m, int64_t n) {
  for (int64_t i = 0; i < m; ++i) store_array(dst, (index * m + i) * n, src + i * padded<T>(n), n);
}

template <class T>
void run(const NewtonSchulzBatch& args, const ParallelFor& parallel, bool backward) {
  const int64_t m = args.m, n = args.n, ld = padded<T>(n);
  const int64_t size = task_size<T>(m, n, args.options.steps, backward);
  const int64_t tasks = parallel.tasks(args.batch);
  parallel(tasks, [&](int64_t task) {
    T* x = static_cast<T*>(args.scratch) + task * size;
    T* grad = x + m * ld;
    T* memory = backward ? grad + m * ld : grad;
    for (int64_t i = args.batch * task / tasks; i < args.batch * (task + 1) / tasks; ++i) {
      load_matrix(x, args.x, i, m, n);
      if (backward) {
        load_matrix(grad, args.grad, i, m, n);
        newton_schulz_matrix_backward<T>(grad, ld, grad, ld, x, ld, m, n, args.options, memory);
      } else {
        newton_schulz_matrix<T>(x, ld, x, ld, m, n, args.options, memory);
      }
      store_matrix(args.out, i, backward ? grad : x, m, n);
    }
  });
}

}  // namespace

int64_t newton_schulz_batch_scratch(int64_t m, int64_t n, int steps, bool backward, bool is_double,
                                    const ParallelFor& parallel) {
  return parallel.threads() * (is_double ? task_size<double>(m, n, steps, backward)
                                         : task_size<float>(m, n, steps, backward));
}

void newton_schulz_batch(const NewtonSchulzBatch& args, const ParallelFor& parallel) {
  args.is_double ? run<double>(args, parallel, false) : run<float>(args, parallel, false);
}

void newton_schulz_batch_backward(const NewtonSchulzBatch& args, const ParallelFor& parallel) {
  args.is_double ? run<double>(args, parallel, true) : run<float>(args, parallel, true);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
