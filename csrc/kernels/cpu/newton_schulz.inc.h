// Newton-Schulz of a batch of matrices (spec section 4). Matrices are dealt to tasks in contiguous
// runs, or large ones are taken one by one and threads share their products; each is converted into
// scratch, worked on there (newton_schulz_tile.h) and stored converted.
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

// A Split with a piece for every thread; of internal linkage, as all that is made for it.
struct Pieces {
  const ParallelFor& parallel;

  template <class Work>
  ATLAS_INLINE void operator()(int64_t count, const Work& work) const {
    const int64_t tasks = parallel.tasks(count);
    parallel(tasks, [&](int64_t task) { work(count * task / tasks, count * (task + 1) / tasks); });
  }
};

// Matrices [first, last) in `scratch`.
template <class T, class Split>
void run_some(const NewtonSchulzBatch& args, bool backward, int64_t first, int64_t last, T* scratch,
              const Split& split) {
  const int64_t m = args.m, n = args.n, ld = padded<T>(n);
  T* x = scratch;
  T* grad = x + m * ld;
  T* memory = backward ? grad + m * ld : grad;
  for (int64_t i = first; i < last; ++i) {
    load_matrix(x, args.x, i, m, n);
    if (backward) {
      load_matrix(grad, args.grad, i, m, n);
      newton_schulz_matrix_backward<T>(grad, ld, grad, ld, x, ld, m, n, args.options, memory,
                                       split);
    } else {
      newton_schulz_matrix<T>(x, ld, x, ld, m, n, args.options, memory, split);
    }
    store_matrix(args.out, i, backward ? grad : x, m, n);
  }
}

template <class T>
void run(const NewtonSchulzBatch& args, const ParallelFor& parallel, bool backward) {
  T* scratch = static_cast<T*>(args.scratch);
  if (args.one_by_one) return run_some<T>(args, backward, 0, args.batch, scratch, Pieces{parallel});
  const int64_t size = task_size<T>(args.m, args.n, args.options.steps, backward);
  const int64_t tasks = parallel.tasks(args.batch);
  parallel(tasks, [&](int64_t task) {
    run_some<T>(args, backward, args.batch * task / tasks, args.batch * (task + 1) / tasks,
                scratch + task * size, OnePiece());
  });
}

}  // namespace

int64_t newton_schulz_batch_scratch(int64_t m, int64_t n, int steps, bool backward, bool is_double,
                                    int64_t tasks) {
  return tasks * (is_double ? task_size<double>(m, n, steps, backward)
                            : task_size<float>(m, n, steps, backward));
}

void newton_schulz_batch(const NewtonSchulzBatch& args, const ParallelFor& parallel) {
  args.is_double ? run<double>(args, parallel, false) : run<float>(args, parallel, false);
}

void newton_schulz_batch_backward(const NewtonSchulzBatch& args, const ParallelFor& parallel) {
  args.is_double ? run<double>(args, parallel, true) : run<float>(args, parallel, true);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
