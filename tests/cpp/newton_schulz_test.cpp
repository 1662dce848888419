// Newton-Schulz against the formula written as loops, its backward against central differences.
#include "kernels/cpu/newton_schulz.h"

#include "check.h"

namespace cpu = atlas::kernels::cpu;
using Matrix = std::vector<double>;

const double kTable[9] = {3.4445, -4.775, 2.0315, 2.5, -2.6, 1.0, 1.875, -1.25, 0.375};
constexpr int kSteps = 3;
constexpr double kScale = 0.7, kEps = 1e-7;

Matrix product(const Matrix& a, const Matrix& b, int64_t m, int64_t k, int64_t n) {
  Matrix c(m * n, 0.0);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t l = 0; l < k; ++l)
      for (int64_t j = 0; j < n; ++j) c[i * n + j] += a[i * k + l] * b[l * n + j];
  return c;
}

// X <- a X + (b A + c A^2) X with A = X X^T, without the transposing of tall matrices.
Matrix newton_schulz(const double* s, int64_t m, int64_t n) {
  double norm = 0;
  for (int64_t i = 0; i < m * n; ++i) norm += s[i] * s[i];
  Matrix x(s, s + m * n);
  for (double& value : x) value /= std::sqrt(norm) + kEps;
  for (int step = 0; step < kSteps; ++step) {
    Matrix transposed(n * m);
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < n; ++j) transposed[j * m + i] = x[i * n + j];
    const Matrix once = product(product(x, transposed, m, n, m), x, m, m, n);
    const Matrix twice = product(product(x, transposed, m, n, m), once, m, m, n);
    for (int64_t i = 0; i < m * n; ++i)
      x[i] = kTable[3 * step] * x[i] + kTable[3 * step + 1] * once[i] +
             kTable[3 * step + 2] * twice[i];
  }
  for (double& value : x) value *= kScale;
  return x;
}

template <class T>
std::vector<T> call(const std::vector<T>& x, const std::vector<T>* grad, int64_t batch, int64_t m,
                    int64_t n, bool one_by_one = false) {
  constexpr bool is_double = sizeof(T) == 8;
  constexpr cpu::Dtype dtype = is_double ? cpu::Dtype::f64 : cpu::Dtype::f32;
  const cpu::ParallelFor parallel = check::two_threads();
  std::vector<T> out(x.size(), T(NAN));
  std::vector<T> scratch(cpu::newton_schulz_batch_scratch(m, n, kSteps, grad != nullptr, is_double,
                                                          one_by_one ? 1 : parallel.tasks(batch)),
                         T(NAN));
  const cpu::NewtonSchulzBatch args{{x.data(), dtype},
                                    {grad ? grad->data() : nullptr, dtype},
                                    {out.data(), dtype},
                                    batch,
                                    m,
                                    n,
                                    {kTable, kSteps, kScale, kEps},
                                    scratch.data(),
                                    is_double,
                                    one_by_one};
  if (grad)
    cpu::newton_schulz_batch_backward(args, parallel);
  else
    cpu::newton_schulz_batch(args, parallel);
  return out;
}

template <class T>
void test_value(int64_t batch, int64_t m, int64_t n, double tolerance) {
  const std::vector<T> x = check::normal<T>(batch * m * n, 1);
  const Matrix wide(x.begin(), x.end());
  const std::vector<T> out = call<T>(x, nullptr, batch, m, n);
  for (int64_t b = 0; b < batch; ++b) {
    const Matrix wanted = newton_schulz(wide.data() + b * m * n, m, n);
    for (int64_t i = 0; i < m * n; ++i) CHECK_CLOSE(out[b * m * n + i], wanted[i], tolerance);
  }
}

void test_backward(int64_t batch, int64_t m, int64_t n) {
  Matrix x = check::normal<double>(batch * m * n, 2);
  const Matrix grad = check::normal<double>(x.size(), 3);
  const Matrix grad_x = call<double>(x, &grad, batch, m, n);
  auto loss = [&] {
    const Matrix out = call<double>(x, nullptr, batch, m, n);
    double sum = 0;
    for (size_t i = 0; i < out.size(); ++i) sum += out[i] * grad[i];
    return sum;
  };
  for (size_t i = 0; i < x.size(); i += 1 + x.size() / 40) {
    const double step = 1e-5, centre = x[i];
    x[i] = centre + step;
    const double above = loss();
    x[i] = centre - step;
    const double below = loss();
    x[i] = centre;
    CHECK_CLOSE(grad_x[i], (above - below) / (2 * step), 1e-6);
  }
}

void test_zero() {
  const Matrix x(2 * 3 * 5, 0.0), grad = check::normal<double>(x.size(), 4);
  for (double value : call<double>(x, nullptr, 2, 3, 5)) CHECK(value == 0.0);
  for (double value : call<double>(x, &grad, 2, 3, 5)) CHECK(value == 0.0);
}

// Threads that share each matrix's products change no bit.
void test_one_by_one(int64_t m, int64_t n) {
  const Matrix x = check::normal<double>(2 * m * n, 5), grad = check::normal<double>(x.size(), 6);
  CHECK(call<double>(x, nullptr, 2, m, n, true) == call<double>(x, nullptr, 2, m, n));
  CHECK(call<double>(x, &grad, 2, m, n, true) == call<double>(x, &grad, 2, m, n));
}

void test_newton_schulz() {
  const int64_t shapes[][2] = {{1, 1},   {1, 9},   {9, 1},   {3, 5},
                               {16, 16}, {17, 33}, {33, 17}, {40, 64}};
  for (const auto& [m, n] : shapes) {
    test_value<double>(3, m, n, 1e-10);
    test_value<float>(3, m, n, 1e-4);
    if (m * n < 1000) test_backward(3, m, n);
    test_one_by_one(m, n);
  }
  test_one_by_one(75, 51);
  test_one_by_one(50, 120);
  test_one_by_one(120, 50);
  test_zero();
}

int main() { return check::run(test_newton_schulz); }
