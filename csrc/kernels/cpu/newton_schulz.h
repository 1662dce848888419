#pragma once
#include "kernels/cpu/array.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/parallel.h"

namespace atlas::kernels::cpu {

// X_0 = S / (||S||_F + eps), X <- a X + (b A + c A^2) X with A = X X^T, result times `scale`.
struct NewtonSchulz {
  const double* table;  // [steps, 3]: a, b, c of every step
  int steps;            // >= 1
  double scale;         // finished factor on the result, 1 for none
  double eps;
};

struct NewtonSchulzBatch {
  Array x;           // [batch, m, n], contiguous
  Array grad;        // [batch, m, n], backward only
  MutableArray out;  // [batch, m, n]: the result, or grad_x
  int64_t batch, m, n;
  NewtonSchulz options;
  void* scratch;  // newton_schulz_batch_scratch elements of the compute type
  bool is_double;
  bool one_by_one;  // threads share each matrix's products, instead of the matrices
};

ATLAS_DECLARE_PER_ISA(
    int64_t newton_schulz_batch_scratch(int64_t m, int64_t n, int steps, bool backward,
                                        bool is_double, int64_t tasks);
    void newton_schulz_batch(const NewtonSchulzBatch& args, const ParallelFor& parallel);
    void newton_schulz_batch_backward(const NewtonSchulzBatch& args, const ParallelFor& parallel))

// Elements of the compute type that a pass over the whole batch needs as scratch if matrices are
// dealt to this many tasks; one where they are taken one by one.
int64_t newton_schulz_batch_scratch(int64_t m, int64_t n, int steps, bool backward, bool is_double,
                                    int64_t tasks);
void newton_schulz_batch(const NewtonSchulzBatch& args, const ParallelFor& parallel);
void newton_schulz_batch_backward(const NewtonSchulzBatch& args, const ParallelFor& parallel);

}  // namespace atlas::kernels::cpu
