// One token of the Omega rule with a linear memory, in place (spec section 1). An item is a (row,
// head); the state is read and written where it lies, once: its bytes are the floor.
#include "kernels/cpu/arena.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/newton_schulz_tile.h"
#include "kernels/cpu/omega_update.h"
#include "kernels/cpu/poly_row.h"

namespace atlas::kernels::cpu::ATLAS_ISA {
namespace {

template <class T>
struct UpdateTask {
  int64_t window, kp, dp, rp;
  T* k;         // [W, kp] keys of the window, oldest first; the query behind them
  T* x;         // [W + 1, dp] phi of them, zero-padded
  T* xt;        // [D, rp] phi(k) transposed
  T* values;    // [W, V]
  T* gamma;     // [W], oldest first
  T* e;         // [V, rp] gated error signals
  T* gradient;  // [V, dp] G_t, then S_t where Newton-Schulz follows
  T* o;         // [V, dp]
  T* y;         // [V]
  T* monomials;
  T* ns;

  UpdateTask(Arena<T>& arena, const OmegaOptions& options) {
    const int64_t width = kWidth<T>, features = options.features(), value = options.value_dim;
    window = options.window;
    kp = padded<T>(options.key_dim);
    dp = padded<T>(features);
    rp = padded<T>(window);
    k = arena.take((window + 1) * kp + width);
    x = options.degree == 0 ? k : arena.take((window + 1) * dp + width);
    xt = arena.take(features * rp);
    values = arena.take(window * value);
    gamma = arena.take(window);
    e = arena.take(value * rp);
    gradient = arena.take(value * dp);
    o = options.ns.steps == 0 ? nullptr : arena.take(value * dp);
    y = arena.take(value);
    monomials = arena.take(poly_monomials_scratch<T>(options.key_dim, options.degree));
    ns = options.ns.steps == 0
             ? nullptr
             : arena.take(newton_schulz_scratch<T>(value, features, options.ns.steps, false));
  }
};

template <class T>
T* state_matrix(const StridedState& state, int64_t slot, int64_t head) {
  return static_cast<T*>(state.array.data) + slot * state.stride[0] + head * state.stride[1];
}

template <class T>
T scalar(const Strided& gate, int64_t m, int64_t head) {
  T value = 0;
  load_array(&value, gate.array, gate.at(m, head), 1, 1);
  return value;
}

template <class T>
T decay(const Strided& log, int64_t m, int64_t head) {
  if (!log) return T(1);
  const T value = scalar<T>(log, m, head);
  return sizeof(T) == 4 ? __builtin_expf(value) : __builtin_exp(value);
}

// Loads the window's `rows` last tokens, the newest from the inputs, and the query as row `rows`.
template <class T>
void load_window(const UpdateTask<T>& task, const OmegaUpdate& args, const PolyMap<T>& map,
                 int64_t m, int64_t head, int64_t rows) {
  const OmegaOptions& options = args.options;
  const int64_t slot = args.slots[m], features = options.features();
  const Strided k_tail = args.k_tail.read(), v_tail = args.v_tail.read();
  fill_zero(task.k, (rows + 1) * task.kp + kWidth<T>);
  for (int64_t i = 0; i + 1 < rows; ++i) {
    const int64_t tail = task.window - rows + i;
    load_array(task.k + i * task.kp, k_tail.array, k_tail.at(slot, tail, head), options.key_dim, 1);
    load_array(task.values + i * options.value_dim, v_tail.array, v_tail.at(slot, tail, head),
               options.value_dim, 1);
  }
  load_array(task.k + (rows - 1) * task.kp, args.k.array, args.k.at(m, head), options.key_dim,
             args.k.stride[2]);
  load_array(task.values + (rows - 1) * options.value_dim, args.v.array, args.v.at(m, head),
             options.value_dim, args.v.stride[2]);
  load_array(task.k + rows * task.kp, args.q.array, args.q.at(m, head), options.key_dim,
             args.q.stride[2]);
  load_array(task.gamma, args.gamma.array,
             args.gamma.at(m, head) + (rows - 1) * args.gamma.stride[2], rows,
             -args.gamma.stride[2]);
  if (options.degree == 0) return;
  for (int64_t i = 0; i <= rows; ++i)
    poly_row(task.x + i * task.dp, task.k + i * task.kp, map, task.monomials);
  for (int64_t i = 0; i <= rows; ++i)
    fill_zero(task.x + i * task.dp + features, task.dp - features);
}

// gradient [V, dp] = sum_i gamma_i e_i x_iᵀ with e_i = M_ref(x_i) - v_i (l2) or -v_i (dot)
template <class T>
void window_gradient(const UpdateTask<T>& task, const OmegaUpdate& args, int64_t slot, int64_t head,
                     int64_t rows) {
  const OmegaOptions& options = args.options;
  const int64_t value = options.value_dim, features = options.features();
  if (options.l2) {
    transpose(task.xt, task.rp, task.x, task.dp, rows, features);
    gemm(value, rows, features,
         plain(state_matrix<T>(args.chunk_weights, slot, head), args.chunk_weights.stride[2]),
         task.xt, task.rp, task.e, task.rp);
  } else {
    fill_zero(task.e, value * task.rp);
  }
  const bool residual = options.l2 && options.residual;
  for (int64_t j = 0; j < value; ++j)
    for (int64_t i = 0; i < rows; ++i) {
      const T raw = residual ? task.k[i * task.kp + j] : T(0);
      task.e[j * task.rp + i] =
          task.gamma[i] * (task.e[j * task.rp + i] + raw - task.values[i * value + j]);
    }
  gemm(value, features, rows, plain(task.e, task.rp), task.x, task.dp, task.gradient, task.dp);
}

template <class T>
void shift_tail(const StridedState& tail, int64_t slot, int64_t head, int64_t slots, int64_t width,
                const T* newest) {
  if (slots == 0) return;
  const int64_t size = tail.array.dtype == Dtype::f64 ? 8 : tail.array.dtype == Dtype::f32 ? 4 : 2;
  char* first =
      static_cast<char*>(tail.array.data) + (slot * tail.stride[0] + head * tail.stride[2]) * size;
  const int64_t step = tail.stride[1] * size;
  for (int64_t i = 0; i + 1 < slots; ++i)
    __builtin_memcpy(first + i * step, first + (i + 1) * step, width * size);
  store_array({first + (slots - 1) * step, tail.array.dtype}, 0, newest, width);
}

template <class T>
void update_item(const UpdateTask<T>& task, const OmegaUpdate& args, const PolyMap<T>& map,
                 int64_t m, int64_t head) {
  const OmegaOptions& options = args.options;
  const int64_t slot = args.slots[m], position = args.positions[m];
  const int64_t value = options.value_dim, features = options.features();
  const int64_t rows = smaller(task.window, position + 1);
  const bool momentum = static_cast<bool>(args.log_theta), ns = options.ns.steps > 0;
  const bool writes = !ns || (position + 1) % options.ns_every == 0;
  load_window(task, args, map, m, head, rows);
  window_gradient(task, args, slot, head, rows);
  const T theta = decay<T>(args.log_theta, m, head), alpha = decay<T>(args.log_alpha, m, head);
  const T eta = scalar<T>(args.eta, m, head);
  for (int64_t j = 0; momentum && j < value; ++j) {
    T* s = state_matrix<T>(args.momentum, slot, head) + j * args.momentum.stride[2];
    scale_add(s, theta, T(1), task.gradient + j * task.dp, features);
    __builtin_memcpy(task.gradient + j * task.dp, s, features * sizeof(T));
  }
  const T* step = task.gradient;
  if (ns && writes) {
    for (int64_t j = 0; j < value; ++j)
      fill_zero(task.gradient + j * task.dp + features, task.dp - features);
    newton_schulz_matrix(task.o, task.dp, task.gradient, task.dp, value, features, options.ns,
                         task.ns);
    step = task.o;
  }
  const T* query = task.x + rows * task.dp;
  const bool closes = (position + 1) % options.chunk_size == 0;
  for (int64_t j = 0; j < value; ++j) {
    T* w = state_matrix<T>(args.weights, slot, head) + j * args.weights.stride[2];
    scale_add(w, alpha, writes ? -eta : T(0), step + j * task.dp, features);
    task.y[j] = dot(w, query, features);
    if (options.residual) task.y[j] += task.k[rows * task.kp + j];
    if (!closes) continue;
    T* reference =
        state_matrix<T>(args.chunk_weights, slot, head) + j * args.chunk_weights.stride[2];
    __builtin_memcpy(reference, w, features * sizeof(T));
  }
  store_array(args.o, (m * options.heads + head) * value, task.y, value);
  shift_tail(args.k_tail, slot, head, task.window - 1, options.key_dim,
             task.k + (rows - 1) * task.kp);
  shift_tail(args.v_tail, slot, head, task.window - 1, value, task.values + (rows - 1) * value);
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
