// One token of the Omega rule, in place (docs/math/omega_rule.md, section 2). An item is a (row,
// head); every matrix of the state is read and written where it lies, once: its bytes are the
// floor.
#include "kernels/cpu/omega_update_window.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

// What one token does to the state: its gates, and where the window's rows are.
template <class T>
struct Step {
  int64_t slot, head, rows;
  T alpha, theta, eta;  // eta 0 where the token does not write
  bool writes, momentum, closes;
};

// w <- alpha w - eta step, with step = g or, with a momentum, s <- theta s + g; returns w . u.
template <class T>
ATLAS_INLINE T update_row(T* w, T* s, const T* g, const T* u, const Step<T>& step, int64_t n) {
  Vec<T> sum{};
  int64_t i = 0;
  for (; i + kWidth<T> <= n; i += kWidth<T>) {
    Vec<T> move = load(g + i);
    if (s != nullptr) {
      move += load(s + i) * step.theta;
      store(s + i, move);
    }
    const Vec<T> next = load(w + i) * step.alpha - move * step.eta;
    store(w + i, next);
    sum += next * load(u + i);
  }
  T total = sum_lanes<T>(sum);
  for (; i < n; ++i) {
    const T move = s == nullptr ? g[i] : s[i] = s[i] * step.theta + g[i];
    w[i] = w[i] * step.alpha - move * step.eta;
    total += w[i] * u[i];
  }
  return total;
}

// S_t of matrix l into task.gradient [out, ip], zero-padded, and O_t = NS(S_t) into task.o.
template <class T>
void orthogonal_step(const UpdateTask<T>& task, const OmegaUpdate& args, const Step<T>& step, int l,
                     const T* inputs, int64_t ip) {
  const OmegaOptions& options = args.options;
  const int64_t out = options.rows_of(l), in = options.cols_of(l);
  gemm(out, in, step.rows, plain(task.d[l], task.rp), inputs, ip, task.gradient, ip);
  for (int64_t j = 0; j < out; ++j) {
    T* row = task.gradient + j * ip;
    fill_zero(row + in, ip - in);
    if (!step.momentum) continue;
    T* s = state_matrix<T>(args.momentum[l], step.slot, step.head) + j * args.momentum[l].stride[2];
    scale_add(s, step.theta, T(1), row, in);
    __builtin_memcpy(row, s, in * sizeof(T));
  }
  newton_schulz_matrix(task.o, ip, task.gradient, ip, out, in, options.ns_of(l), task.ns);
}

// The next head's row, while this one's is worked on: it need not exist.
template <class T>
ATLAS_INLINE void prefetch_row(const T* row, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / static_cast<int64_t>(sizeof(T)))
    __builtin_prefetch(row + i, 0, 2);
}

// Moves matrix l and reads it: y [out] = W_t u, u with `in` elements.
template <class T>
void update_matrix(T* y, const UpdateTask<T>& task, const OmegaUpdate& args, const Step<T>& step,
                   int l, const T* inputs, int64_t ip, const T* u) {
  const OmegaOptions& options = args.options;
  const int64_t out = options.rows_of(l), in = options.cols_of(l);
  const StridedState &weights = args.weights[l], &momentum = args.momentum[l];
  T* w = state_matrix<T>(weights, step.slot, step.head);
  T* reference = state_matrix<T>(args.chunk_weights[l], step.slot, step.head);
  const bool orthogonal = options.ns.steps > 0 && step.writes;
  if (orthogonal) orthogonal_step(task, args, step, l, inputs, ip);
  T* s = step.momentum && !orthogonal ? state_matrix<T>(momentum, step.slot, step.head) : nullptr;
  for (int64_t first = 0; first < out; first += kStateRows) {
    const int64_t block = smaller(kStateRows, out - first);
    const T* move = task.o + first * ip;
    if (!orthogonal) {
      gemm(block, in, step.rows, plain(task.d[l] + first * task.rp, task.rp), inputs, ip,
           task.gradient, ip);
      move = task.gradient;
    }
    for (int64_t j = first; j < first + block; ++j) {
      T* w_row = w + j * weights.stride[2];
      T* s_row = s == nullptr ? nullptr : s + j * momentum.stride[2];
      prefetch_row(w_row + weights.stride[1], in);
      if (s != nullptr) prefetch_row(s_row + momentum.stride[1], in);
      prefetch_row(
          reference + j * args.chunk_weights[l].stride[2] + args.chunk_weights[l].stride[1], in);
      y[j] = update_row(w_row, s_row, move + (j - first) * ip, u, step, in);
    }
  }
  if (!step.closes) return;
  for (int64_t j = 0; j < out; ++j)
    __builtin_memcpy(reference + j * args.chunk_weights[l].stride[2], w + j * weights.stride[2],
                     in * sizeof(T));
}

template <class T>
void update_item(const UpdateTask<T>& task, const OmegaUpdate& args, const PolyMap<T>& map,
                 int64_t m, int64_t head) {
  const OmegaOptions& options = args.options;
  const int64_t slot = args.slots[m], position = args.positions[m], value = options.value_dim;
  const int64_t rows = smaller(task.window, position + 1);
  const int last = options.matrices - 1;
  const bool writes = options.ns.steps == 0 || (position + 1) % options.ns_every == 0;
  const Step<T> step{slot,
                     head,
                     rows,
                     decay<T>(args.log_alpha, m, head),
                     decay<T>(args.log_theta, m, head),
                     writes ? scalar<T>(args.eta, m, head) : T(0),
                     writes,
                     static_cast<bool>(args.log_theta),
                     (position + 1) % options.chunk_size == 0};
  load_window(task, args, map, m, head, rows);
  window_signals(task, args, slot, head, rows);
  const T* query = task.x + rows * task.dp;
  for (int l = 0; l < last; ++l)
    update_matrix(task.query[l], task, args, step, l, task.x, task.dp, query);
  if (options.deep()) {
    T *z1 = task.query[0], *h = task.query[2];
    fill_zero(z1 + options.hidden, task.fp - options.hidden);
    each_activated(options.activation, z1, task.fp,
                   [&](int64_t i, Activated<T> act) { store(h + i, act.value); });
    for (int64_t i = 0; options.matrices > 2 && i < options.hidden; ++i) h[i] *= task.query[1][i];
    query = h;
  }
  update_matrix(task.y, task, args, step, last, options.deep() ? task.ht : task.x,
                options.deep() ? task.fp : task.dp, query);
  if (options.residual) axpy(task.y, T(1), task.k + rows * task.kp, value);
  store_array(args.o, (m * options.heads + head) * value, task.y, value);
  store_tail(args.k_tail, slot, head, task.window - 1, options.key_dim, task.k, task.kp, rows);
  store_tail(args.v_tail, slot, head, task.window - 1, value, task.values, value, rows);
}

template <class T>
int64_t shared_elements(const OmegaOptions& options) {
  return options.degree == 0 ? 0 : padded<T>(options.features()) + 2 * kWidth<T>;
}

template <class T>
int64_t task_elements(const OmegaOptions& options) {
  Arena<T> arena(nullptr);
  UpdateTask<T>(arena, options);
  return arena.used();
}

template <class T>
void run(const OmegaUpdate& args, const ParallelFor& parallel) {
  const OmegaOptions& options = args.options;
  const int64_t items = args.rows * options.heads, tasks = parallel.tasks(items),
                each = task_elements<T>(options);
  T* memory = static_cast<T*>(args.scratch);
  PolyMap<T> map{};
  if (options.degree > 0)
    poly_map_init(map, memory, options.key_dim, options.degree, options.scales, options.roots);
  memory += shared_elements<T>(options);
  parallel(tasks, [&](int64_t task) {
    Arena<T> arena(memory + task * each);
    const UpdateTask<T> work(arena, options);
    for (int64_t item = items * task / tasks; item < items * (task + 1) / tasks; ++item)
      update_item(work, args, map, item / options.heads, item % options.heads);
  });
}

template <class T>
int64_t scratch_elements(const OmegaUpdate& args, const ParallelFor& parallel) {
  return shared_elements<T>(args.options) +
         parallel.tasks(args.rows * args.options.heads) * task_elements<T>(args.options);
}

}  // namespace

int64_t omega_update_scratch(const OmegaUpdate& args, const ParallelFor& parallel) {
  return args.options.is_double ? scratch_elements<double>(args, parallel)
                                : scratch_elements<float>(args, parallel);
}

void omega_update(const OmegaUpdate& args, const ParallelFor& parallel) {
  args.options.is_double ? run<double>(args, parallel) : run<float>(args, parallel);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
