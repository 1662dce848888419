// phi(x): all monomials of total degree <= p in graded order, each times c_l * sqrt(multinomial)
// (spec section 3). Rows are dealt to tasks in contiguous runs; each task builds a row in scratch
// and stores it converted.
#include "kernels/cpu/poly_row.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

template <class T>
int64_t table_size(int64_t dim, int degree) {
  return padded<T>(poly_feature_dim(dim, degree)) + kWidth<T>;
}

template <class T>
int64_t task_size(int64_t dim, int degree, bool backward) {
  const int64_t row = padded<T>(dim) + kWidth<T>;
  const int64_t levels = poly_monomials_scratch<T>(dim, degree);
  return table_size<T>(dim, degree) +
         (backward ? 2 * row + 2 * levels + kMaxDegree + 1 : row + levels);
}

template <class T>
void forward(const PolyFeatures& args, const ParallelFor& parallel) {
  const int64_t features = poly_feature_dim(args.dim, args.degree);
  T* scratch = static_cast<T*>(args.scratch);
  PolyMap<T> map;
  poly_map_init(map, scratch, args.dim, args.degree, args.scales, args.roots);
  scratch += table_size<T>(args.dim, args.degree);
  const int64_t tasks = parallel.tasks(args.rows);
  parallel(tasks, [&](int64_t task) {
    T* row = scratch + task * task_size<T>(args.dim, args.degree, false);
    T* x = row + table_size<T>(args.dim, args.degree);
    T* monomials = x + padded<T>(args.dim) + kWidth<T>;
    fill_zero(x, padded<T>(args.dim) + kWidth<T>);
    for (int64_t r = args.rows * task / tasks; r < args.rows * (task + 1) / tasks; ++r) {
      load_array(x, args.x, r * args.dim, args.dim, 1);
      poly_row(row, x, map, monomials);
      store_array(args.out, r * features, row, features);
    }
  });
}

template <class T>
void backward(const PolyFeaturesBackward& args, const ParallelFor& parallel) {
  const int64_t features = poly_feature_dim(args.dim, args.degree);
  const int64_t row_size = padded<T>(args.dim) + kWidth<T>;
  const int64_t levels = poly_monomials_scratch<T>(args.dim, args.degree);
  const int64_t stride = task_size<T>(args.dim, args.degree, true);
  T* scratch = static_cast<T*>(args.scratch);
  PolyMap<T> map;
  poly_map_init(map, scratch, args.dim, args.degree, args.scales, args.roots);
  scratch += table_size<T>(args.dim, args.degree);
  const int64_t tasks = parallel.tasks(args.rows);
  parallel(tasks, [&](int64_t task) {
    T* grad = scratch + task * stride;
    T* x = grad + table_size<T>(args.dim, args.degree);
    T* grad_x = x + row_size;
    T* monomials = grad_x + row_size;
    T* upper = monomials + levels;
    T* grad_c = upper + levels;
    fill_zero(grad + features, kWidth<T>);
    fill_zero(x, row_size);
    fill_zero(grad_c, kMaxDegree + 1);
    for (int64_t r = args.rows * task / tasks; r < args.rows * (task + 1) / tasks; ++r) {
      load_array(grad, args.grad, r * features, features, 1);
      load_array(x, args.x, r * args.dim, args.dim, 1);
      fill_zero(grad_x, row_size);
      poly_row_backward(grad_x, grad_c, grad, x, map, monomials, upper);
      store_array(args.grad_x, r * args.dim, grad_x, args.dim);
    }
  });
  for (int l = 0; l <= args.degree; ++l) args.grad_scales[l] = 0;
  for (int64_t task = 0; task < tasks; ++task)
    for (int l = 0; l <= args.degree; ++l)
      args.grad_scales[l] += static_cast<double>(scratch[(task + 1) * stride - kMaxDegree - 1 + l]);
}

}  // namespace

int64_t poly_features_scratch(int64_t dim, int degree, bool backward, bool is_double,
                              const ParallelFor& parallel) {
  const int64_t table =
      is_double ? table_size<double>(dim, degree) : table_size<float>(dim, degree);
  const int64_t task = is_double ? task_size<double>(dim, degree, backward)
                                 : task_size<float>(dim, degree, backward);
  return table + parallel.threads() * task;
}

void poly_features(const PolyFeatures& args, const ParallelFor& parallel) {
  args.is_double ? forward<double>(args, parallel) : forward<float>(args, parallel);
}

void poly_features_backward(const PolyFeaturesBackward& args, const ParallelFor& parallel) {
  args.is_double ? backward<double>(args, parallel) : backward<float>(args, parallel);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
