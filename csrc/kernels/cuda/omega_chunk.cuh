#pragma once
// One chunk of the Omega rule: which tokens it has, its rows on chip, its decay scans and the
// kernel of the polynomial map (docs/math/omega_rule.md, sections 2 and 3).
#include "kernels/cuda/omega_work.cuh"

namespace atlas::kernels::cuda {

__device__ __forceinline__ float load_value(const OmegaTensor& tensor, int64_t at) {
  if (tensor.dtype == Dtype::f32) return static_cast<const float*>(tensor.data)[at];
  const uint16_t bits = static_cast<const uint16_t*>(tensor.data)[at];
  return tensor.dtype == Dtype::bf16 ? to_float(bf16{bits}) : to_float(f16{bits});
}

__device__ __forceinline__ void store_value(void* data, Dtype dtype, int64_t at, float value) {
  if (dtype == Dtype::f32)
    static_cast<float*>(data)[at] = value;
  else if (dtype == Dtype::bf16)
    static_cast<bf16*>(data)[at] = from_float<bf16>(value);
  else
    static_cast<f16*>(data)[at] = from_float<f16>(value);
}

__device__ __forceinline__ OmegaItem omega_item(const OmegaOptions& o, const OmegaInputs& in,
                                                int64_t index) {
  OmegaItem item;
  const unsigned heads = static_cast<unsigned>(o.heads), slices = static_cast<unsigned>(o.slices),
                 place = static_cast<unsigned>(index) / slices;
  item.n = place / heads;
  item.head = static_cast<int>(place % heads);
  item.slice = static_cast<int>(static_cast<unsigned>(index) % slices);
  item.value_at = item.slice * o.value;
  const int64_t given = in.position != nullptr ? in.position[item.n] : 0;
  item.position = given > 0 ? smaller(given, int64_t{1} << 62) : 0;  // sums do not overflow
  const int64_t extra = in.position != nullptr ? 1 : 0;  // a chunk may begin in the middle
  if (in.cu_seqlens == nullptr) {
    item.batch = item.n;
    item.begin = 0;
    item.length = in.tokens;
    const int64_t each = in.checkpoints / in.sequences;
    item.checkpoint = item.n * each;
    item.checkpoint_end = item.checkpoint + each;
    return item;
  }
  // Whatever the values are, nothing beyond the tensors is touched.
  int64_t bound[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int64_t value = in.wide_seqlens ? static_cast<const int64_t*>(in.cu_seqlens)[item.n + i]
                                          : static_cast<const int32_t*>(in.cu_seqlens)[item.n + i];
    bound[i] = value < 0 ? 0 : smaller(value, in.tokens);
  }
  item.batch = 0;
  item.begin = bound[0];
  item.length = bound[1] > bound[0] ? bound[1] - bound[0] : 0;
  item.checkpoint = bound[0] / o.chunk_size + item.n * (1 + extra);
  item.checkpoint_end = item.n + 1 < in.sequences
                            ? bound[1] / o.chunk_size + (item.n + 1) * (1 + extra)
                            : in.checkpoints;
  return item;
}

__device__ __forceinline__ OmegaChunk chunk_of(const OmegaOptions& o, const OmegaItem& item,
                                               int64_t first, int64_t tokens) {
  OmegaChunk c;
  c.first = first;
  c.position = item.position + first;
  c.tokens = static_cast<int>(tokens);
  c.overhang = static_cast<int>(smaller(o.window - 1, c.position));
  c.rows = c.overhang + c.tokens;
  return c;
}

// The chunk that begins at token `first`: up to the next multiple of chunk_size.
__device__ __forceinline__ OmegaChunk chunk_from(const OmegaOptions& o, const OmegaItem& item,
                                                 int64_t first) {
  const int64_t left = o.chunk_size - (item.position + first) % o.chunk_size;
  return chunk_of(o, item, first, smaller(left, item.length - first));
}

// Tokens of the chunk that ends before token `stop`, as far as they belong to this call.
__device__ __forceinline__ int chunk_tokens_before(const OmegaOptions& o, const OmegaItem& item,
                                                   int64_t stop) {
  if (stop == 0) return 0;
  return static_cast<int>(smaller((item.position + stop - 1) % o.chunk_size + 1, stop));
}

// Where token 0 of the item stands in a tensor of tokens.
__device__ __forceinline__ int64_t token_offset(const OmegaTensor& tensor, const OmegaItem& item) {
  return item.batch * tensor.stride[0] + item.begin * tensor.stride[1] +
         item.head * tensor.stride[2];
}

// rows [count, ld] = sign times columns [from, from + width) of tokens from `first` (negative: of
// the tail); `ones`: a column of ones behind.
__device__ __forceinline__ void load_rows(float* rows, int ld, int width, const OmegaTensor& tokens,
                                          const OmegaTensor& tail, const OmegaItem& item,
                                          int64_t slots, int64_t first, int count, bool ones,
                                          int from = 0, float sign = 1) {
  const int64_t at = token_offset(tokens, item) + from * tokens.stride[3];
  const int64_t tail_at =
      item.n * tail.stride[0] + item.head * tail.stride[2] + from * tail.stride[3];
  each(count, ones ? width + 1 : width, [&](int i, int j) {
    const int64_t token = first + i;
    float value = 1;
    if (j < width)
      value =
          sign *
          (token >= 0
               ? load_value(tokens, at + token * tokens.stride[1] + j * tokens.stride[3])
               : load_value(tail, tail_at + (slots + token) * tail.stride[1] + j * tail.stride[3]));
    rows[i * ld + j] = value;
  });
}

// exp of a log decay; 1 where there is none.
__device__ __forceinline__ float decay(const OmegaTensor& logs, const OmegaItem& item,
                                       int64_t token) {
  if (!logs.present) return 1;
  return exponential(load_value(logs, token_offset(logs, item) + token * logs.stride[1]));
}

// The chunk's queries. Barrier by the caller, as for all of these.
__device__ __forceinline__ void load_queries(const OmegaWork& w, const OmegaOptions& o,
                                             const OmegaInputs& in) {
  load_rows(w.q, o.sizes.kp, o.key, in.q, in.q, w.item, o.window - 1, w.chunk.first, w.chunk.tokens,
            o.degree > 0);
}

// Its rows of keys and values, the latter negated, into e.
__device__ __forceinline__ void load_window(const OmegaWork& w, const OmegaOptions& o,
                                            const OmegaInputs& in) {
  const OmegaSizes& sz = o.sizes;
  const OmegaItem& item = w.item;
  const OmegaChunk& c = w.chunk;
  const int slots = o.window - 1;
  load_rows(w.k, sz.kp, o.key, in.k, in.k_tail, item, slots, c.first - c.overhang, c.rows,
            o.degree > 0);
  load_rows(w.d[last_matrix(o)], sz.vp, o.value, in.v, in.v_tail, item, slots, c.first - c.overhang,
            c.rows, false, item.value_at, -1);
}

// Its scalar gates.
__device__ __forceinline__ void load_gates(const OmegaWork& w, const OmegaOptions& o,
                                           const OmegaInputs& in) {
  const OmegaItem& item = w.item;
  const OmegaChunk& c = w.chunk;
  const int64_t eta = token_offset(in.eta, item);
  each(c.tokens, [&](int t) {
    const int64_t token = c.first + t;
    w.alpha[t] = decay(in.log_alpha, item, token);
    w.theta[t] = o.momentum ? decay(in.log_theta, item, token) : 0.0f;
    w.eta[t] = load_value(in.eta, eta + token * in.eta.stride[1]);
  });
}

__device__ __forceinline__ void load_chunk(const OmegaWork& w, const OmegaOptions& o,
                                           const OmegaInputs& in) {
  load_queries(w, o, in);
  load_window(w, o, in);
  load_gates(w, o, in);
}

// Gamma[t, i], 0 where token t's window does not hold row i; `at` is where the chunk's first token
// stands in gamma.
__device__ __forceinline__ float band(const OmegaTensor& gamma, int64_t at, const OmegaChunk& c,
                                      int window, int t, int i) {
  const int offset = c.overhang + t - i;
  if (offset < 0 || offset >= window) return 0;
  return load_value(gamma, at + t * gamma.stride[1] + offset * gamma.stride[3]);
}

__device__ __forceinline__ int64_t gamma_offset(const OmegaInputs& in, const OmegaItem& item,
                                                const OmegaChunk& c) {
  return token_offset(in.gamma, item) + c.first * in.gamma.stride[1];
}

// The scans (13) and (14) over the whole chunk, a thread for every column: cf [tokens, rp], and of
// A all rows or (`last_only`) the last one.
__device__ __forceinline__ void scan_chunk(const OmegaWork& w, const OmegaOptions& o,
                                           const OmegaInputs& in, bool last_only) {
  const OmegaChunk& c = w.chunk;
  const int rp = o.sizes.rp;
  const int64_t gamma = gamma_offset(in, w.item, c);
  each(c.rows + 1, [&](int i) {
    if (i == c.rows) {  // one more thread for the scalars
      float p = o.momentum ? 1.0f : 0.0f, s = 0, m = 1;
      for (int t = 0; t < c.tokens; ++t) {
        w.p[t] = p *= w.theta[t];
        w.s[t] = s = w.alpha[t] * s + w.eta[t] * p;
        w.m[t] = m *= w.alpha[t];
      }
      return;
    }
    float a = 0, cf = 0;
    for (int t = 0; t < c.tokens; ++t) {
      a = w.theta[t] * a + band(in.gamma, gamma, c, o.window, t, i);
      cf = w.alpha[t] * cf + w.eta[t] * a;
      w.cf[t * rp + i] = cf;
      if (!last_only) w.a[t * rp + i] = a;
    }
    if (last_only) w.a[i] = a;
  });
}

// sum_l c_l² score^l, the polynomial map's kernel; the score itself where there is no map.
__device__ __forceinline__ float kernel_of_score(const float* scales, int degree, float score) {
  if (degree == 0) return score;
  float value = scales[degree] * scales[degree];
  for (int l = degree - 1; l >= 0; --l) value = value * score + scales[l] * scales[l];
  return value;
}

}  // namespace atlas::kernels::cuda
