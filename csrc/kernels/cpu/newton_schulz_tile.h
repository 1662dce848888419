// Newton-Schulz of one small matrix, forward and backward (spec section 4,
// docs/math/newton_schulz.md), for kernel bodies that hold the matrix in scratch; included after
// isa_begin.h.
//
//   X_0 = S / (||S||_F + eps),  Z = a I + b A + c A^2 with A = X X^T,  X <- Z X
//
// The iterate is kept upright, X^T [longer, padded(shorter)], whatever the shape of S: then A and
// X <- Z X need no transposed copy, because the left operand of gemm is read with any strides.
// A, Z and their powers are symmetric: half of each is computed and mirrored.
//
// Steps come in stretches. Within one, X is not touched: A <- Z A Z and Q <- Q Z (all of them
// polynomials in A, so they commute and stay symmetric), and X <- Q X at its end. A square matrix
// has stretches of one step, Q = Z. On an elongated one, longer stretches replace products with X
// by products of the small symmetric matrices.
//
// Precision: T throughout. The round-off of A at a stretch's start grows by a^2 in every step,
// which kStretchGrowth bounds; the norm is taken of S scaled by a power of two, so that it neither
// overflows nor underflows.
#pragma once
#include "kernels/cpu/newton_schulz.h"
#include "kernels/cpu/newton_schulz_symmetric.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

constexpr double kStretchGrowth = 256;

// Sizes of the upright problem, and where its iterates live.
template <class T>
struct NewtonSchulzTape {
  int64_t longer, shorter, ld;
  int slots;      // of steps: all of them for the backward, two for the forward
  T* iterates;    // [slots, longer, ld]: X^T at the start of every stretch
  T* symmetrics;  // [slots, 4, ld, ld]: A, Z, Z A, Q of every step

  int64_t iterate_size() const { return longer * ld; }
  int64_t symmetric_size() const { return ld * ld; }
  T* iterate(int stretch) const { return iterates + (stretch % slots) * iterate_size(); }
  T* symmetric(int step, int which) const {
    return symmetrics + ((step % slots) * 4 + which) * symmetric_size();
  }
  T* gram(int step) const { return symmetric(step, 0); }
  T* factor(int step) const { return symmetric(step, 1); }
  T* factor_gram(int step) const { return symmetric(step, 2); }
  // Q after `step`, of the stretch that starts at `begin`.
  T* q(int begin, int step) const { return step == begin ? factor(step) : symmetric(step, 3); }
};

template <class T>
inline NewtonSchulzTape<T> newton_schulz_tape(int64_t m, int64_t n, int steps, bool backward,
                                              T* scratch) {
  NewtonSchulzTape<T> tape;
  tape.longer = larger(m, n);
  tape.shorter = smaller(m, n);
  tape.ld = padded<T>(tape.shorter);
  tape.slots = backward ? steps : 2;
  tape.iterates = scratch;
  tape.symmetrics = scratch + tape.slots * tape.iterate_size();
  return tape;
}

// Elements of T that newton_schulz_matrix (backward: newton_schulz_matrix_backward) needs.
template <class T>
inline int64_t newton_schulz_scratch(int64_t m, int64_t n, int steps, bool backward) {
  const NewtonSchulzTape<T> tape = newton_schulz_tape<T>(m, n, steps, backward, nullptr);
  const int64_t recompute = tape.slots * (tape.iterate_size() + 4 * tape.symmetric_size());
  return recompute + (backward ? 2 * tape.iterate_size() + 5 * tape.symmetric_size() : 0);
}

// One past the last step of the stretch that starts at `begin`.
inline int stretch_end(const NewtonSchulz& options, int64_t longer, int64_t shorter, int begin) {
  int end = begin + 1;
  if (longer < 2 * shorter) return end;
  double growth = 1;
  for (; end < options.steps; ++end) {
    const double a = options.table[3 * (end - 1)];
    growth *= a * a;
    if (!(growth <= kStretchGrowth)) break;
  }
  return end;
}

// ||S||_F = norm / power, with power a power of two that keeps the squares in range.
struct ScaledNorm {
  double power, norm;
};

template <class T>
inline ScaledNorm scaled_norm(const T* s, int64_t lds, int64_t m, int64_t n) {
  constexpr int64_t w = kWidth<T>;
  constexpr int exponent_limit = sizeof(T) == 4 ? 120 : 1000;
  Vec<T> most{};
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; j += w) {
      const Vec<T> x = load(s + i * lds + j);
      const Vec<T> size = x < 0 ? -x : x;
      most = size > most ? size : most;
    }
  }
  T lanes[w];
  store(lanes, most);
  double largest = 0;
  for (int64_t i = 0; i < w; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  int exponent = 0;
  if (largest > 0 && largest <= __DBL_MAX__) __builtin_frexp(largest, &exponent);
  exponent = exponent > exponent_limit    ? exponent_limit
             : exponent < -exponent_limit ? -exponent_limit
                                          : exponent;
  const double power = __builtin_ldexp(1.0, -exponent);
  Vec<T> even{}, odd{};
  for (int64_t i = 0; i < m; ++i) {
    const T* row = s + i * lds;
    int64_t j = 0;
    for (; j + w < n; j += 2 * w) {
      const Vec<T> x = load(row + j) * static_cast<T>(power);
      const Vec<T> y = load(row + j + w) * static_cast<T>(power);
      even += x * x;
      odd += y * y;
    }
    if (j < n) {
      const Vec<T> x = load(row + j) * static_cast<T>(power);
      even += x * x;
    }
  }
  return {power, __builtin_sqrt(static_cast<double>(sum_lanes<T>(even + odd)))};
}

// dst = x * factor, element by element, for rows of whole vectors; dst may be x.
template <class T>
inline void scale_rows(T* dst, int64_t ldd, const T* x, int64_t ldx, int64_t rows, int64_t cols,
                       T first, T second) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < cols; j += kWidth<T>)
      store(dst + i * ldd + j, load(x + i * ldx + j) * first * second);
}

// The upright copy of x [m, n] times first * second; the factors are applied one by one, because
// their product may be out of range.
template <class T>
inline void load_upright(T* dst, const NewtonSchulzTape<T>& tape, const T* x, int64_t ldx,
                         int64_t m, int64_t n, T first, T second) {
  if (m >= n) return scale_rows(dst, tape.ld, x, ldx, m, n, first, second);
  transpose(dst, tape.ld, x, ldx, m, n);
  scale_rows(dst, tape.ld, dst, tape.ld, n, m, first, second);
}

// The small matrices of the stretch [begin, end); returns Q, with which X <- Q X.
template <class T, class Split>
inline const T* run_stretch(const Split& split, const NewtonSchulzTape<T>& tape,
                            const NewtonSchulz& options, const T* x, int begin, int end) {
  const int64_t n = tape.shorter, ld = tape.ld;
  symmetric_product(split, n, tape.longer, transposed(x, ld), x, ld, tape.gram(begin), ld);
  for (int step = begin; step < end; ++step) {
    const double* row = options.table + 3 * step;
    T* gram = tape.gram(step);
    T* z = tape.factor(step);
    symmetric_quadratic(split, n, z, gram, ld, static_cast<T>(row[0]), static_cast<T>(row[1]),
                        static_cast<T>(row[2]));
    if (step > begin)
      symmetric_product(split, n, n, plain(tape.q(begin, step - 1), ld), z, ld, tape.q(begin, step),
                        ld);
    if (step + 1 == end) break;
    T* product = tape.factor_gram(step);
    symmetric_product(split, n, n, plain(gram, ld), z, ld, product, ld);
    symmetric_product(split, n, n, plain(product, ld), z, ld, tape.gram(step + 1), ld);
  }
  return tape.q(begin, end - 1);
}

// out [m, n] = scale * NS(s), products cut by `split`. Rows are whole vectors with zero padding,
// read and written; out may be s. A zero matrix gives zero.
template <class T, class Split = OnePiece>
inline void newton_schulz_matrix(T* out, int64_t ldo, const T* s, int64_t lds, int64_t m, int64_t n,
                                 const NewtonSchulz& options, T* scratch,
                                 const Split& split = Split()) {
  const ScaledNorm size = scaled_norm(s, lds, m, n);
  if (size.norm == 0) {
    for (int64_t i = 0; i < m; ++i) fill_zero(out + i * ldo, padded<T>(n));
    return;
  }
  const NewtonSchulzTape<T> tape = newton_schulz_tape(m, n, options.steps, false, scratch);
  const int64_t ld = tape.ld;
  T* x = tape.iterate(0);
  load_upright(x, tape, s, lds, m, n, static_cast<T>(size.power),
               static_cast<T>(1 / (size.norm + options.eps * size.power)));
  for (int begin = 0, stretch = 0; begin < options.steps; ++stretch) {
    const int end = stretch_end(options, tape.longer, tape.shorter, begin);
    const T* q = run_stretch(split, tape, options, x, begin, end);
    const bool last = end == options.steps;
    const bool direct = last && m >= n;
    T* next = direct ? out : tape.iterate(stretch + 1);
    split_gemm<T>(split, tape.longer, tape.shorter, tape.shorter, plain(x, ld), q, ld, next,
                  direct ? ldo : ld, last ? static_cast<T>(options.scale) : T(1));
    if (last && !direct) transpose(out, ldo, next, ld, tape.longer, tape.shorter);
    x = next;
    begin = end;
  }
}

// One matrix's adjoints in the backward of a stretch. For a symmetric matrix M the adjoint kept is
// D + D^T, D the plain one: the factor two of d(X X^T) is then already in.
template <class T>
struct NewtonSchulzAdjoints {
  T *q, *gram, *factor, *spare, *other;
};

template <class T>
inline void swap_pointers(T*& a, T*& b) {
  T* const c = a;
  a = b;
  b = c;
}

template <class T>
inline void copy_rows(T* dst, const T* src, int64_t rows, int64_t ld) {
  for (int64_t i = 0; i < rows * ld; i += kWidth<T>) store(dst + i, load(src + i));
}

// From the adjoints of Q after `step` and of A after it (none at the stretch's end) to those
// before.
template <class T, class Split>
inline void step_backward(const Split& split, NewtonSchulzAdjoints<T>& adjoint,
                          const NewtonSchulzTape<T>& tape, const NewtonSchulz& options, int begin,
                          int step, int end) {
  const int64_t n = tape.shorter, ld = tape.ld;
  const T b = static_cast<T>(options.table[3 * step + 1]);
  const T c = static_cast<T>(options.table[3 * step + 2]);
  const T half = T(0.5);
  const T* gram = tape.gram(step);
  const T* z = tape.factor(step);
  const bool inner = step + 1 < end;

  // Z: from Q' = Q Z and A' = Z A Z.
  const T* factor = adjoint.factor;
  if (step > begin) {
    split_gemm<T>(split, n, n, n, plain(tape.q(begin, step - 1), ld), adjoint.q, ld, adjoint.factor,
                  ld, half);
  } else if (inner) {
    copy_rows(adjoint.factor, adjoint.q, n, ld);
  } else {
    factor = adjoint.q;
  }
  if (inner)
    split_gemm<T>(split, n, n, n, plain(tape.factor_gram(step), ld), adjoint.gram, ld,
                  adjoint.factor, ld, T(1), step > begin ? T(1) : half);
  if (factor == adjoint.factor) symmetrise(split, n, adjoint.factor, ld);

  // Q: from Q' = Q Z.
  if (step > begin) {
    split_gemm<T>(split, n, n, n, plain(adjoint.q, ld), z, ld, adjoint.spare, ld, half);
    symmetrise(split, n, adjoint.spare, ld);
    swap_pointers(adjoint.q, adjoint.spare);
  }

  // A: from Z = a I + b A + c A^2 and A' = Z A Z.
  copy_rows(adjoint.other, factor, n, ld);
  split_gemm<T>(split, n, n, n, plain(gram, ld), factor, ld, adjoint.other, ld, c, b * half);
  if (inner) {
    split_gemm<T>(split, n, n, n, plain(z, ld), adjoint.gram, ld, adjoint.spare, ld, half);
    split_gemm<T>(split, n, n, n, plain(adjoint.spare, ld), z, ld, adjoint.other, ld, T(1), T(1));
  }
  symmetrise(split, n, adjoint.other, ld);
  swap_pointers(adjoint.gram, adjoint.other);
}

// grad_x = adjoint of X^T before the stretch [begin, end), from grad, that after it.
template <class T, class Split>
inline void stretch_backward(const Split& split, T* grad_x, const T* grad,
                             NewtonSchulzAdjoints<T>& adjoint, const NewtonSchulzTape<T>& tape,
                             const NewtonSchulz& options, int stretch, int begin, int end) {
  const int64_t longer = tape.longer, n = tape.shorter, ld = tape.ld;
  const T* x = tape.iterate(stretch);
  split_gemm<T>(split, n, n, longer, transposed(grad, ld), x, ld, adjoint.q, ld);
  symmetrise(split, n, adjoint.q, ld);
  for (int step = end - 1; step >= begin; --step)
    step_backward(split, adjoint, tape, options, begin, step, end);
  split_gemm<T>(split, longer, n, n, plain(grad, ld), tape.q(begin, end - 1), ld, grad_x, ld);
  split_gemm<T>(split, longer, n, n, plain(x, ld), adjoint.gram, ld, grad_x, ld, T(1), T(1));
}

// Backward of X_0 = S / (||S||_F + eps): grad_s holds dL/dX_0 on entry, dL/dS on return.
template <class T>
inline void normalise_backward(T* grad_s, int64_t ldg, const T* s, int64_t lds, int64_t m,
                               int64_t n, ScaledNorm size, double eps) {
  constexpr int64_t w = kWidth<T>;
  const T power = static_cast<T>(size.power);
  Vec<T> sum{};
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; j += w)
      sum += load(grad_s + i * ldg + j) * (load(s + i * lds + j) * power);
  const double whole = size.norm + eps * size.power;
  const T inward = static_cast<T>(static_cast<double>(sum_lanes<T>(sum)) / (size.norm * whole));
  const T factor = static_cast<T>(size.power / whole);
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < n; j += w) {
      T* grad = grad_s + i * ldg + j;
      store(grad, (load(grad) - load(s + i * lds + j) * power * inward) * factor);
    }
  }
}

// grad_s [m, n] = gradient of newton_schulz_matrix; exactly zero for a zero matrix. The iterates
// are computed anew. Rows as there; grad_s may be grad_out but not s.
template <class T, class Split = OnePiece>
inline void newton_schulz_matrix_backward(T* grad_s, int64_t ldg, const T* grad_out, int64_t ldo,
                                          const T* s, int64_t lds, int64_t m, int64_t n,
                                          const NewtonSchulz& options, T* scratch,
                                          const Split& split = Split()) {
  const ScaledNorm size = scaled_norm(s, lds, m, n);
  if (size.norm == 0) {
    for (int64_t i = 0; i < m; ++i) fill_zero(grad_s + i * ldg, padded<T>(n));
    return;
  }
  const int steps = options.steps;
  const NewtonSchulzTape<T> tape = newton_schulz_tape(m, n, steps, true, scratch);
  const int64_t longer = tape.longer, shorter = tape.shorter, ld = tape.ld;
  T* grad = tape.symmetrics + 4 * steps * tape.symmetric_size();
  T* grad_x = grad + tape.iterate_size();
  T* work = grad_x + tape.iterate_size();
  NewtonSchulzAdjoints<T> adjoint{
      work, work + tape.symmetric_size(), work + 2 * tape.symmetric_size(),
      work + 3 * tape.symmetric_size(), work + 4 * tape.symmetric_size()};

  load_upright(tape.iterate(0), tape, s, lds, m, n, static_cast<T>(size.power),
               static_cast<T>(1 / (size.norm + options.eps * size.power)));
  int stretch = 0, begin = 0;
  for (;; ++stretch) {
    const int end = stretch_end(options, longer, shorter, begin);
    const T* x = tape.iterate(stretch);
    const T* q = run_stretch(split, tape, options, x, begin, end);
    if (end == steps) break;
    split_gemm<T>(split, longer, shorter, shorter, plain(x, ld), q, ld, tape.iterate(stretch + 1),
                  ld);
    begin = end;
  }

  load_upright(grad, tape, grad_out, ldo, m, n, static_cast<T>(options.scale), T(1));
  for (int end = steps; end > 0; --stretch) {
    begin = 0;
    for (int next; (next = stretch_end(options, longer, shorter, begin)) < end;) begin = next;
    stretch_backward(split, grad_x, grad, adjoint, tape, options, stretch, begin, end);
    swap_pointers(grad, grad_x);
    end = begin;
  }
  if (m >= n)
    scale_rows(grad_s, ldg, grad, ld, m, n, T(1), T(1));
  else
    transpose(grad_s, ldg, grad, ld, longer, shorter);
  normalise_backward(grad_s, ldg, s, lds, m, n, size, options.eps);
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
