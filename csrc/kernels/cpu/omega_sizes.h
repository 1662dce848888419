// Sizes of one call of the Omega rule and the layout of its states; included by kernel bodies after
// isa_begin.h.
#pragma once
#include "kernels/cpu/omega_rule.h"
#include "kernels/cpu/simd.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// One matrix of the memory, held transposed, [in, op]: reads and writes then run along its outputs.
struct MatrixSizes {
  int64_t in, out, op;
  int64_t ip;  // leading dimension of its inputs
  int64_t at;  // where it starts in a state
};

// Sizes that are fixed for one call. A state is all matrices of a memory, one behind the other.
struct Sizes {
  int64_t key, value, features, hidden, window, chunk,
      rows;                    // rows: most window rows of a chunk, chunk + window - 1
  int64_t kp, vp, dp, fp, rp;  // leading dimensions: whole vectors
  int matrices;
  MatrixSizes matrix[kMostMatrices];
  int64_t state;   // elements of a state
  int64_t widest;  // largest leading dimension of any matrix's outputs or inputs

  bool deep() const { return matrices > 1; }
  bool gated() const { return matrices > 2; }
  int last() const { return matrices - 1; }
  int first_layer() const { return deep() ? matrices - 1 : 1; }  // matrices that see phi
};

template <class T>
inline Sizes sizes_of(const OmegaOptions& options, const OmegaInputs& in) {
  Sizes s;
  int64_t longest = 1;
  for (int64_t n = 0; n < in.num_sequences; ++n)
    longest = larger(longest, in.sequences[n].end - in.sequences[n].begin);
  s.key = options.key_dim;
  s.value = options.value_dim;
  s.features = options.features();
  s.hidden = options.hidden;
  s.window = options.window;
  s.chunk = smaller(options.chunk_size, longest);
  s.rows = s.chunk + s.window - 1;
  s.kp = padded<T>(s.key);
  s.vp = padded<T>(s.value);
  s.dp = padded<T>(s.features);
  s.fp = padded<T>(s.hidden);
  s.rp = padded<T>(s.rows);
  s.matrices = options.matrices;
  s.state = 0;
  s.widest = larger(s.dp, larger(s.fp, s.vp));
  for (int l = 0; l < s.matrices; ++l) {
    const int64_t in = options.cols_of(l), out = options.rows_of(l), op = padded<T>(out);
    s.matrix[l] = {in, out, op, padded<T>(in), s.state};
    s.state += in * op;
  }
  return s;
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
