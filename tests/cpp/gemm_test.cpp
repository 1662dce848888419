// gemm.h against a double loop: every remainder of the tiling, both operand orders, alpha and beta.
#include <limits>

#include "check.h"

void test_gemm();
int main() { return check::run(test_gemm); }

#include "kernels/cpu/isa_begin.h"
// after isa_begin.h
#include "kernels/cpu/gemm.h"

namespace cpu = atlas::kernels::cpu::ATLAS_ISA;

template <class T>
void test_shape(int64_t rows, int64_t cols, int64_t depth, bool transpose, T beta) {
  const int64_t ldb = cpu::padded<T>(cols), lda = (transpose ? rows : depth) + 3;
  const T alpha = T(0.5);
  const std::vector<T> a = check::normal<T>((transpose ? depth : rows) * lda + 1, 1);
  std::vector<T> b = check::normal<T>(depth * ldb + 1, 2);
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t j = cols; j < ldb; ++j) b[k * ldb + j] = T(0);
  std::vector<T> c = check::normal<T>(rows * ldb, 3);
  const std::vector<T> before = c;
  // beta = 0 must not read C: NaN there would show.
  if (beta == T(0)) c.assign(c.size(), std::numeric_limits<T>::quiet_NaN());
  const cpu::Operand<T> operand =
      transpose ? cpu::transposed(a.data(), lda) : cpu::plain(a.data(), lda);
  cpu::gemm<T>(rows, cols, depth, operand, b.data(), ldb, c.data(), ldb, alpha, beta);
  const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-13;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      double wanted = beta == T(0) ? 0.0 : double(beta) * before[i * ldb + j];
      for (int64_t k = 0; k < depth; ++k)
        wanted += double(alpha) * operand.data[i * operand.row + k * operand.col] * b[k * ldb + j];
      CHECK_CLOSE(c[i * ldb + j], wanted, tolerance);
    }
  }
}

template <class T>
void test_type() {
  for (int64_t rows : {0, 1, 2, 3, 5, 6, 7, 8, 11, 12, 13, 17, 30})
    for (int64_t cols : {1, 3, 4, 8, 9, 16, 17, 31, 33, 64, 65, 100})
      for (int64_t depth : {0, 1, 7, 64})
        for (bool transpose : {false, true})
          for (T beta : {T(0), T(1), T(-0.25)}) test_shape<T>(rows, cols, depth, transpose, beta);
}

void test_gemm() {
  test_type<float>();
  test_type<double>();
}
