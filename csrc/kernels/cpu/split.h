// How one matrix product is cut among threads; included by kernel bodies after isa_begin.h. Every
// element is made by one thread, in the order in which a single thread makes it: results do not
// depend on the number of threads.
#pragma once
#include "kernels/cpu/gemm.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// Calls work(begin, end) for [0, count), in one piece. Another Split makes a piece for each thread.
struct OnePiece {
  template <class Work>
  ATLAS_INLINE void operator()(int64_t count, const Work& work) const {
    work(int64_t{0}, count);
  }
};

// gemm, its rows cut in whole tiles.
template <class T, class Split>
inline void split_gemm(const Split& split, int64_t rows, int64_t cols, int64_t depth, Operand<T> a,
                       const T* b, int64_t ldb, T* c, int64_t ldc, T alpha = T(1), T beta = T(0)) {
  constexpr int64_t each = 24;  // a multiple of every tile's rows
  split((rows + each - 1) / each, [&](int64_t begin, int64_t end) {
    const int64_t from = begin * each, to = smaller(end * each, rows);
    gemm<T>(to - from, cols, depth, {a.data + from * a.row, a.row, a.col}, b, ldb, c + from * ldc,
            ldc, alpha, beta);
  });
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
