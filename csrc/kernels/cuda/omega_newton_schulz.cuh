#pragma once
// Newton-Schulz of one matrix of a state by the whole block (spec section 4,
// docs/math/newton_schulz.md), the matrix held [in, out] as the state has it.
#include "kernels/cuda/newton_schulz_block.cuh"
#include "kernels/cuda/omega_work.cuh"

namespace atlas::kernels::cuda {

constexpr float kOmegaNsEps = 1e-7f;

// How the smaller side of a matrix lies: the steps multiply from that side.
struct SmallerSide {
  int side, other, ld;  // ld: of the squares
  bool columns;         // out is the smaller one

  __device__ __forceinline__ explicit SmallerSide(const OmegaMatrix& m)
      : side(min(m.in, m.out)),
        other(larger(m.in, m.out)),
        ld(leading(min(m.in, m.out))),
        columns(m.out <= m.in) {}

  // Rows along the smaller side, [side, other].
  __device__ __forceinline__ View wide(const float* x, int x_ld) const {
    return columns ? transposed(x, x_ld) : plain(x, x_ld);
  }
  __device__ __forceinline__ View tall(const float* x, int x_ld) const {
    return columns ? plain(x, x_ld) : transposed(x, x_ld);
  }
};

// ||S||_F as MatrixNorm has it, for all threads.
__device__ __forceinline__ MatrixNorm measure_matrix(const float* s, const OmegaMatrix& m,
                                                     float eps, float* line) {
  float largest = 0;
  each(m.in, m.out, [&](int i, int j) {
    const float value = s[i * m.ld + j], size = value < 0 ? -value : value;
    largest = size > largest ? size : largest;
  });
  MatrixNorm norm;
  norm.power = power_below(block_max(largest, line));
  float sum = 0;
  each(m.in, m.out, [&](int i, int j) {
    const float value = s[i * m.ld + j] * norm.power;
    sum += value * value;
  });
  norm.norm = square_root(block_sum(sum, line));
  norm.whole = norm.norm + eps * norm.power;
  return norm;
}

// z [side, ld] = a I + b A + c A², A = gram.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void step_polynomial(float* z, const float* gram, const SmallerSide& s,
                                                const NewtonSchulzSchedule& schedule, int step) {
  const float a = schedule_entry(schedule, step, 0), b = schedule_entry(schedule, step, 1),
              c = schedule_entry(schedule, step, 2);
  product<kArithmetic>(z, s.ld, s.side, s.side, s.side, plain(gram, s.ld), plain(gram, s.ld),
                       {c, 0});
  each(s.side, s.side,
       [&](int i, int j) { z[i * s.ld + j] += b * gram[i * s.ld + j] + (i == j ? a : 0.0f); });
  __syncthreads();
}

// x' = x times Z from the smaller side.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void step_apply(float* next, const float* x, const float* z,
                                           const SmallerSide& s, const OmegaMatrix& m, float beta) {
  if (s.columns)
    product<kArithmetic>(next, m.ld, m.in, m.out, m.out, plain(x, m.ld), plain(z, s.ld), {1, beta});
  else
    product<kArithmetic>(next, m.ld, m.in, m.out, m.in, plain(z, s.ld), plain(x, m.ld), {1, beta});
}

// Q of the steps [begin, end) on the small matrices, X <- X Q; gram, the first square, is X's Gram
// matrix. More than one step takes four squares, as newton_schulz.cuh has it.
template <Arithmetic kArithmetic>
__device__ __forceinline__ const float* stretch_factor(float* const* squares,
                                                       const SmallerSide& side,
                                                       const NewtonSchulzSchedule& schedule,
                                                       int begin, int end) {
  const int s = side.side, ld = side.ld;
  float *const gram = squares[0], *const z = squares[2];
  float *q = squares[1], *spare = squares[3];
  step_polynomial<kArithmetic>(q, gram, side, schedule, begin);
  const float* factor = q;
  for (int step = begin + 1; step < end; ++step) {
    product<kArithmetic>(spare, ld, s, s, s, plain(gram, ld), plain(factor, ld));
    product<kArithmetic>(gram, ld, s, s, s, plain(factor, ld), plain(spare, ld));
    step_polynomial<kArithmetic>(z, gram, side, schedule, step);
    product<kArithmetic>(spare, ld, s, s, s, plain(q, ld), plain(z, ld));
    float* const old = q;
    q = spare;
    spare = old;
    factor = z;
  }
  return q;
}

// NS(S) without its scale, [in, ld], in one of `work`, two matrices; S [in, ld] may be the first
// one. squares: four where a matrix is elongated, else two. A barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ const float* block_newton_schulz(const float* s, const OmegaMatrix& m,
                                                            const NewtonSchulzSchedule& schedule,
                                                            float* const* work,
                                                            float* const* squares, float* line) {
  const SmallerSide side(m);
  float *x = work[0], *next = work[1];
  __syncthreads();
  const MatrixNorm norm = measure_matrix(s, m, kOmegaNsEps, line);
  each(m.in, m.out,
       [&](int i, int j) { x[i * m.ld + j] = s[i * m.ld + j] * norm.power * norm.factor(); });
  __syncthreads();
  for (int step = 0; step < schedule.steps;) {
    const int end = stretch_end(schedule, is_elongated(m.in, m.out), step);
    product<kArithmetic>(squares[0], side.ld, side.side, side.side, side.other, side.wide(x, m.ld),
                         side.tall(x, m.ld));
    const float* const q = stretch_factor<kArithmetic>(squares, side, schedule, step, end);
    step_apply<kArithmetic>(next, x, q, side, m, 0);
    float* const old = x;
    x = next;
    next = old;
    step = end;
  }
  return x;
}

// One step of the adjoint: next = the gradient of x, given that of x' in grad. squares: four.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void step_backward(float* next, const float* grad, const float* x,
                                              float* const* squares, const SmallerSide& side,
                                              const OmegaMatrix& m,
                                              const NewtonSchulzSchedule& schedule, int step) {
  float *const gram = squares[0], *const z = squares[1], *const y = squares[2],
               *const r = squares[3];
  const int s = side.side, ld = side.ld;
  const float b = schedule_entry(schedule, step, 1), c = schedule_entry(schedule, step, 2);
  product<kArithmetic>(gram, ld, s, s, side.other, side.wide(x, m.ld), side.tall(x, m.ld));
  product<kArithmetic>(y, ld, s, s, side.other, side.wide(x, m.ld), side.tall(grad, m.ld));
  each(s, s, [&](int i, int j) { r[i * ld + j] = y[i * ld + j] + y[j * ld + i]; });
  __syncthreads();
  product<kArithmetic>(y, ld, s, s, s, plain(r, ld), plain(gram, ld));
  each(s, s, [&](int i, int j) {
    r[i * ld + j] = b * r[i * ld + j] + c * (y[i * ld + j] + y[j * ld + i]);
  });
  step_polynomial<kArithmetic>(z, gram, side, schedule, step);
  step_apply<kArithmetic>(next, grad, z, side, m, 0);
  step_apply<kArithmetic>(next, x, r, side, m, 1);
}

// grad_s = the gradient of S, given that of scale NS(S); all [in, ld]. work: two matrices and four
// squares; tape: a matrix of `stride` floats for each step. Where S is zero, so is grad_s. A
// barrier comes before and after.
template <Arithmetic kArithmetic>
__device__ __forceinline__ void block_newton_schulz_backward(float* grad_s, const float* grad_o,
                                                             const float* s, const OmegaMatrix& m,
                                                             const NewtonSchulzSchedule& schedule,
                                                             float scale, float* const* work,
                                                             float* const* squares, float* tape,
                                                             int stride, float* line) {
  const SmallerSide side(m);
  __syncthreads();
  const MatrixNorm norm = measure_matrix(s, m, kOmegaNsEps, line);
  each(m.in, m.out, [&](int i, int j) {
    const int at = i * m.ld + j;
    tape[at] = s[at] * norm.power * norm.factor();
    work[0][at] = scale * grad_o[at];
  });
  __syncthreads();
  for (int step = 0; step + 1 < schedule.steps; ++step) {
    const float* const x = tape + static_cast<int64_t>(step) * stride;
    product<kArithmetic>(squares[0], side.ld, side.side, side.side, side.other, side.wide(x, m.ld),
                         side.tall(x, m.ld));
    step_polynomial<kArithmetic>(squares[1], squares[0], side, schedule, step);
    step_apply<kArithmetic>(tape + static_cast<int64_t>(step + 1) * stride, x, squares[1], side, m,
                            0);
  }
  float *grad = work[0], *next = work[1];
  for (int step = schedule.steps - 1; step >= 0; --step) {
    step_backward<kArithmetic>(next, grad, tape + static_cast<int64_t>(step) * stride, squares,
                               side, m, schedule, step);
    float* const old = grad;
    grad = next;
    next = old;
  }
  float inward = 0;
  each(m.in, m.out, [&](int i, int j) { inward += grad[i * m.ld + j] * tape[i * m.ld + j]; });
  inward = block_sum(inward, line);
  if (norm.norm != 0) inward *= norm.whole * reciprocal(norm.norm);
  each(m.in, m.out, [&](int i, int j) {
    const int at = i * m.ld + j;
    grad_s[at] = (grad[at] - tape[at] * inward) * norm.factor() * norm.power;
  });
  __syncthreads();
}

}  // namespace atlas::kernels::cuda
