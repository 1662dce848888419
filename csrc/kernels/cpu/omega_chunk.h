// One chunk of the Omega rule: its rows, its decay scans forward and backward
// (docs/math/omega_rule.md). Included by kernel bodies after isa_begin.h.
#pragma once
#include "kernels/cpu/arena.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/omega_sizes.h"
#include "kernels/cpu/poly_row.h"

namespace atlas::kernels::cpu::ATLAS_ISA {

// Rows of the chunk that comes after this one. A head's rows lie so far apart that the hardware
// does not foresee them; fetching them while this chunk is worked on costs nothing.
struct Upcoming {
  struct Rows {
    const char* first;
    int64_t step, bytes;
  };
  Rows rows[5];
  int64_t tokens = 0;
  int count = 0;

  void add(const Strided& src, int64_t i, int64_t j, int64_t k, int64_t width) {
    const int64_t size = src.array.dtype == Dtype::f64 ? 8 : src.array.dtype == Dtype::f32 ? 4 : 2;
    rows[count++] = {static_cast<const char*>(src.array.data) + src.at(i, j, k) * size,
                     src.stride[1] * size, width * size};
  }

  ATLAS_INLINE void prefetch(int64_t t) const {
    if (t >= tokens) return;
    for (int i = 0; i < count; ++i)
      for (int64_t byte = 0; byte < rows[i].bytes; byte += 64)
        __builtin_prefetch(rows[i].first + t * rows[i].step + byte, 0, 2);
  }
};

// Rows i < rows() of the window are the `overhang` tokens before the chunk and the chunk's own; row
// i is the token `first - overhang + i` of the call (negative: from the state's tail). Token t of
// the chunk sees rows i <= overhang + t.
template <class T>
struct Chunk {
  int64_t tokens, overhang, first;
  int64_t position;  // of the chunk's first token in its sequence
  T* q;              // [tokens, kp]
  T* k;              // [rows, kp]
  T* values;         // [rows, vp]
  T* u;              // [tokens, dp] phi(q); q itself where there is no feature map
  T* x;              // [rows, dp] phi(k)
  T* alpha;          // [tokens]
  T* theta;          // [tokens]
  T* eta;            // [tokens]
  T* gamma;          // [tokens, window], oldest offset first
  T* a;              // [tokens, rp] A_t = theta_t A_{t-1} + Gamma_t
  T* cf;             // [tokens, rp] Cf_t = alpha_t Cf_{t-1} + eta_t A_t
  T* p;              // [tokens] p_t = theta_t p_{t-1}, p_{-1} = 1
  T* s;              // [tokens] s_t = alpha_t s_{t-1} + eta_t p_t, s_{-1} = 0
  T* m;              // [tokens] m_t = alpha_t m_{t-1}, m_{-1} = 1
  T* monomials;
  T* line;  // [window]
  Upcoming upcoming;

  int64_t rows() const { return overhang + tokens; }

  Chunk(Arena<T>& arena, const Sizes& sz, int degree) {
    const int64_t w = kWidth<T>;  // slack for the polynomial map's whole-vector reads and writes
    q = arena.take(sz.chunk * sz.kp + w);
    k = arena.take(sz.rows * sz.kp + w);
    values = arena.take(sz.rows * sz.vp);
    u = degree == 0 ? q : arena.take(sz.chunk * sz.dp + w);
    x = degree == 0 ? k : arena.take(sz.rows * sz.dp + w);
    alpha = arena.take(sz.chunk);
    theta = arena.take(sz.chunk);
    eta = arena.take(sz.chunk);
    gamma = arena.take(sz.chunk * sz.window);
    a = arena.take(sz.chunk * sz.rp);
    cf = arena.take(sz.chunk * sz.rp);
    p = arena.take(sz.chunk);
    s = arena.take(sz.chunk);
    m = arena.take(sz.chunk);
    monomials = arena.take(poly_monomials_scratch<T>(sz.key, degree));
    line = arena.take(sz.window);
  }
};

// dst [width, zero-padded to ld] = src[i, j, k, 0 .. width)
template <class T>
ATLAS_INLINE void load_row(T* dst, int64_t ld, const Strided& src, int64_t i, int64_t j, int64_t k,
                           int64_t width) {
  load_array(dst, src.array, src.at(i, j, k), width, src.stride[3]);
  fill_zero(dst + width, ld - width);
}

template <class T>
inline void exponentials(T* dst, const Strided& logs, const OmegaSequence& sequence, int64_t first,
                         int64_t head, int64_t tokens) {
  if (!logs) {
    for (int64_t t = 0; t < tokens; ++t) dst[t] = T(1);
    return;
  }
  load_array(dst, logs.array, logs.at(sequence.batch, sequence.begin + first, head), tokens,
             logs.stride[1]);
  for (int64_t t = 0; t < tokens; ++t)
    dst[t] = sizeof(T) == 4 ? __builtin_expf(dst[t]) : __builtin_exp(dst[t]);
}

// Tokens [first, first + tokens) of the sequence's part in this call come next.
inline void announce_chunk(Upcoming& upcoming, const Sizes& sz, const OmegaInputs& in, int64_t n,
                           int64_t head, int64_t first, int64_t tokens) {
  const int64_t b = in.sequences[n].batch, begin = in.sequences[n].begin + first;
  upcoming.tokens = tokens;
  upcoming.count = 0;
  upcoming.add(in.q, b, begin, head, sz.key);
  upcoming.add(in.k, b, begin, head, sz.key);
  upcoming.add(in.v, b, begin, head, sz.value);
  upcoming.add(in.gamma, b, begin, head, sz.window);
}

// Loads the chunk of `tokens` tokens whose first is token `first` of the sequence's part in this
// call.
template <class T>
inline void load_chunk(Chunk<T>& c, const Sizes& sz, const OmegaOptions& options,
                       const OmegaInputs& in, const PolyMap<T>& map, int64_t n, int64_t head,
                       int64_t first, int64_t tokens) {
  const OmegaSequence& sequence = in.sequences[n];
  c.first = first;
  c.tokens = tokens;
  c.position = sequence.position + first;
  c.overhang = smaller(sz.window - 1, c.position);
  const int64_t b = sequence.batch, begin = sequence.begin + first;
  for (int64_t t = 0; t < tokens; ++t)
    load_row(c.q + t * sz.kp, sz.kp, in.q, b, begin + t, head, sz.key);
  for (int64_t i = 0; i < c.rows(); ++i) {
    const int64_t token = first - c.overhang + i;
    if (token >= 0) {
      load_row(c.k + i * sz.kp, sz.kp, in.k, b, sequence.begin + token, head, sz.key);
      load_row(c.values + i * sz.vp, sz.vp, in.v, b, sequence.begin + token, head, sz.value);
    } else {
      load_row(c.k + i * sz.kp, sz.kp, in.k_tail, n, sz.window - 1 + token, head, sz.key);
      load_row(c.values + i * sz.vp, sz.vp, in.v_tail, n, sz.window - 1 + token, head, sz.value);
    }
  }
  if (options.degree > 0) {
    for (int64_t t = 0; t < tokens; ++t)
      poly_row(c.u + t * sz.dp, c.q + t * sz.kp, map, c.monomials);
    for (int64_t i = 0; i < c.rows(); ++i)
      poly_row(c.x + i * sz.dp, c.k + i * sz.kp, map, c.monomials);
  }
  exponentials(c.alpha, in.log_alpha, sequence, first, head, tokens);
  exponentials(c.theta, in.log_theta, sequence, first, head, tokens);
  load_array(c.eta, in.eta.array, in.eta.at(b, begin, head), tokens, in.eta.stride[1]);
  for (int64_t t = 0; t < tokens; ++t) {
    // Read forwards and turned around here: converting backwards would not vectorise.
    load_array(c.line, in.gamma.array, in.gamma.at(b, begin + t, head), sz.window,
               in.gamma.stride[3]);
    T* gamma = c.gamma + t * sz.window;
    for (int64_t j = 0; j < sz.window; ++j) gamma[j] = c.line[sz.window - 1 - j];
  }
}

// row [count] += Gamma_t, where row count - 1 is the token itself; rows before the sequence's start
// do not exist.
template <class T>
ATLAS_INLINE void add_gamma(T* row, const T* gamma, int64_t window, int64_t count) {
  const int64_t seen = smaller(window, count);
  axpy(row + count - seen, T(1), gamma + window - seen, seen);
}

// The scans over the whole chunk, every row zero beyond the rows that its token sees.
template <class T>
inline void scan_chunk(const Chunk<T>& c, const Sizes& sz, bool momentum) {
  T p = 1, s = 0, m = 1;
  for (int64_t t = 0; t < c.tokens; ++t) {
    const int64_t count = c.overhang + t + 1;
    T* a = c.a + t * sz.rp;
    T* cf = c.cf + t * sz.rp;
    fill_zero(a, sz.rp);
    fill_zero(cf, sz.rp);
    c.upcoming.prefetch(t);
    if (t > 0 && momentum) axpy(a, c.theta[t], a - sz.rp, count - 1);
    add_gamma(a, c.gamma + t * sz.window, sz.window, count);
    if (t > 0) axpy(cf, c.alpha[t], cf - sz.rp, count - 1);
    axpy(cf, c.eta[t], a, count);
    c.p[t] = p = momentum ? p * c.theta[t] : T(0);
    c.s[t] = s = c.alpha[t] * s + c.eta[t] * p;
    c.m[t] = m = c.alpha[t] * m;
  }
}

// Gradients of one chunk's gates; the scan's own gradients are worked on in place.
template <class T>
struct GateGrads {
  T* a;      // [tokens, rp] in: what reaches A_t other than through Cf_t and A_{t+1}
  T* cf;     // [tokens, rp]
  T* p;      // [tokens]
  T* s;      // [tokens]
  T* m;      // [tokens]
  T* alpha;  // [tokens] out: with respect to log_alpha
  T* theta;  // [tokens] out: with respect to log_theta
  T* eta;    // [tokens] out

  GateGrads(Arena<T>& arena, const Sizes& sz) {
    a = arena.take(sz.chunk * sz.rp);
    cf = arena.take(sz.chunk * sz.rp);
    p = arena.take(sz.chunk);
    s = arena.take(sz.chunk);
    m = arena.take(sz.chunk);
    alpha = arena.take(sz.chunk);
    theta = arena.take(sz.chunk);
    eta = arena.take(sz.chunk);
  }
};

// Adjoint of scan_chunk. On return g.a holds the gradient of Gamma_t, row by row.
template <class T>
inline void scan_chunk_backward(const GateGrads<T>& g, const Chunk<T>& c, const Sizes& sz,
                                bool momentum) {
  for (int64_t t = c.tokens - 1; t >= 0; --t) {
    const int64_t count = c.overhang + t + 1;
    T* ga = g.a + t * sz.rp;
    T* gcf = g.cf + t * sz.rp;
    const T* a = c.a + t * sz.rp;
    const T* cf = c.cf + t * sz.rp;
    g.eta[t] = dot(gcf, a, count) + g.s[t] * c.p[t];
    axpy(ga, c.eta[t], gcf, count);
    g.p[t] += g.s[t] * c.eta[t];
    T alpha = g.m[t] * (t > 0 ? c.m[t - 1] : T(1)), theta = g.p[t] * (t > 0 ? c.p[t - 1] : T(1));
    if (t > 0) {
      alpha += dot(gcf, cf - sz.rp, count - 1) + g.s[t] * c.s[t - 1];
      axpy(gcf - sz.rp, c.alpha[t], gcf, count - 1);
      g.s[t - 1] += c.alpha[t] * g.s[t];
      g.m[t - 1] += c.alpha[t] * g.m[t];
      if (momentum) {
        theta += dot(ga, a - sz.rp, count - 1);
        axpy(ga - sz.rp, c.theta[t], ga, count - 1);
        g.p[t - 1] += c.theta[t] * g.p[t];
      }
    }
    g.alpha[t] = alpha * c.alpha[t];
    g.theta[t] = theta * c.theta[t];
  }
}

}  // namespace atlas::kernels::cpu::ATLAS_ISA
