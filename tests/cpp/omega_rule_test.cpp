// The Omega rule's chunk form against the recurrence, token by token, and its backward against
// directional differences, one input at a time.
#include "kernels/cpu/omega_rule.h"

#include <map>
#include <string>

#include "check.h"

namespace cpu = atlas::kernels::cpu;
using Values = std::vector<double>;

constexpr int64_t kHeads = 2, kKey = 3, kTokens = 19, kHidden = 6;
const double kTable[6] = {2.5, -2.6, 1.0, 1.875, -1.25, 0.375};

struct Problem {
  int64_t window, chunk;
  bool l2, momentum;
  int degree, ns_steps;
  bool residual = false;  // then V = K
  int matrices = 1;       // with SiLU where there are more
  int64_t ns_every = 3;
  Values roots{};
  std::map<std::string, Values> in{};
  std::vector<cpu::OmegaSequence> sequences{};
  int64_t checkpoints = 0;

  int64_t value() const { return residual ? kKey : 5; }
  int64_t features() const { return degree ? cpu::poly_feature_dim(kKey, degree) : kKey; }
  int64_t rows(int l) const { return l + 1 == matrices ? value() : kHidden; }
  int64_t cols(int l) const { return matrices > 1 && l + 1 == matrices ? kHidden : features(); }
  static std::string weight(int l) { return "weights" + std::to_string(l); }

  // Two packed sequences of lengths 12 and 7; decays are at most 1.
  void fill() {
    roots.resize(features());
    if (degree) cpu::poly_roots(roots.data(), kKey, degree);
    const std::pair<std::string, int64_t> widths[] = {
        {"q", kKey}, {"k", kKey},      {"v", value()},  {"gamma", window},
        {"eta", 1},  {"log_alpha", 1}, {"log_theta", 1}};
    unsigned seed = 1;
    for (const auto& [name, width] : widths)
      in[name] = check::normal<double>(kTokens * kHeads * width, seed++);
    for (double& x : in["log_alpha"]) x = -0.1 * std::abs(x);
    for (double& x : in["log_theta"]) x = -0.3 * std::abs(x);
    for (double& x : in["eta"]) x = 0.1 * std::abs(x);
    for (int l = 0; l < matrices; ++l)
      in[weight(l)] = check::normal<double>(2 * kHeads * rows(l) * cols(l), seed++);
    int64_t begin = 0;
    for (int64_t length : {12, 7}) {
      sequences.push_back({0, begin, begin + length, 0, checkpoints});
      checkpoints += (length + chunk - 1) / chunk;
      begin += length;
    }
  }

  cpu::OmegaOptions options() const {
    cpu::OmegaOptions result{};
    result.heads = kHeads;
    result.key_dim = kKey;
    result.value_dim = value();
    result.window = window;
    result.chunk_size = chunk;
    result.matrices = matrices;
    result.hidden = matrices > 1 ? kHidden : 0;
    result.activation = cpu::Activation::silu;
    result.degree = degree;
    result.l2 = l2;
    result.residual = residual;
    result.scales = cpu::default_poly_scales();
    result.roots = roots.data();
    result.ns = {kTable, ns_steps, 1.0, 1e-7};
    for (double& scale : result.ns_scales) scale = 1.0;
    result.ns_every = ns_every;
    result.is_double = true;
    return result;
  }

  cpu::Strided tokens(const std::string& name, int64_t width) const {
    return {{in.at(name).data(), cpu::Dtype::f64},
            true,
            {kTokens * kHeads * width, kHeads * width, width, 1}};
  }

  cpu::OmegaInputs inputs() const {
    cpu::OmegaInputs result{};
    result.q = tokens("q", kKey);
    result.k = tokens("k", kKey);
    result.v = tokens("v", value());
    result.gamma = tokens("gamma", window);
    result.eta = tokens("eta", 1);
    result.log_alpha = tokens("log_alpha", 1);
    if (momentum) result.log_theta = tokens("log_theta", 1);
    for (int l = 0; l < matrices; ++l) {
      const int64_t size = rows(l) * cols(l);
      result.weights[l] = {
          {in.at(weight(l)).data(), cpu::Dtype::f64}, true, {kHeads * size, size, cols(l), 1}};
    }
    result.sequences = sequences.data();
    result.num_sequences = static_cast<int64_t>(sequences.size());
    result.tokens = kTokens;
    return result;
  }
};

struct Checkpoints {
  Values weights[cpu::kMostMatrices], momentum[cpu::kMostMatrices];
};

Values forward(const Problem& p, Checkpoints* saved = nullptr) {
  const cpu::ParallelFor parallel = check::two_threads();
  Values o(kTokens * kHeads * p.value(), NAN);
  cpu::OmegaForward args{};
  args.options = p.options();
  args.in = p.inputs();
  args.o = {o.data(), cpu::Dtype::f64};
  for (int l = 0; saved && l < p.matrices; ++l) {
    saved->weights[l].assign(p.checkpoints * kHeads * p.rows(l) * p.cols(l), NAN);
    saved->momentum[l] = saved->weights[l];
    args.weights_checkpoints[l] = saved->weights[l].data();
    if (p.momentum) args.momentum_checkpoints[l] = saved->momentum[l].data();
  }
  Values scratch(cpu::omega_rule_scratch(args.options, args.in, false, parallel), NAN);
  args.scratch = scratch.data();
  cpu::omega_rule(args, parallel);
  return o;
}

Values lifted(const Problem& p, const double* x) {
  if (p.degree == 0) return Values(x, x + kKey);
  const cpu::ParallelFor parallel = check::two_threads();
  Values out(p.features());
  Values scratch(cpu::poly_features_scratch(kKey, p.degree, false, true, parallel));
  cpu::poly_features({{x, cpu::Dtype::f64},
                      {out.data(), cpu::Dtype::f64},
                      1,
                      kKey,
                      p.degree,
                      cpu::default_poly_scales(),
                      p.roots.data(),
                      scratch.data(),
                      true},
                     parallel);
  return out;
}

Values orthogonalised(const Problem& p, int l, const Values& s) {
  const cpu::ParallelFor parallel = check::two_threads();
  Values out(s.size());
  Values scratch(
      cpu::newton_schulz_batch_scratch(p.rows(l), p.cols(l), p.ns_steps, false, true, 1));
  cpu::newton_schulz_batch({{s.data(), cpu::Dtype::f64},
                            {},
                            {out.data(), cpu::Dtype::f64},
                            1,
                            p.rows(l),
                            p.cols(l),
                            p.options().ns,
                            scratch.data(),
                            true,
                            false},
                           parallel);
  return out;
}

using Memory = std::vector<Values>;  // its matrices

Values product(const Values& matrix, const Values& x) {
  Values y(matrix.size() / x.size(), 0.0);
  for (size_t row = 0; row < y.size(); ++row)
    for (size_t i = 0; i < x.size(); ++i) y[row] += matrix[row * x.size() + i] * x[i];
  return y;
}

double silu(double z) { return z / (1 + std::exp(-z)); }

double silu_slope(double z) {
  const double s = 1 / (1 + std::exp(-z));
  return s * (1 + z * (1 - s));
}

// M(x) without the residual; the hidden layer's parts on the way.
Values read(const Memory& m, const Values& x, Values& z1, Values& z3, Values& h) {
  if (m.size() == 1) return product(m[0], x);
  z1 = product(m[0], x);
  z3 = m.size() == 3 ? product(m[1], x) : Values(z1.size(), 1.0);
  h.resize(z1.size());
  for (size_t i = 0; i < h.size(); ++i) h[i] = silu(z1[i]) * z3[i];
  return product(m.back(), h);
}

void add_outer(Values& s, double factor, const Values& d, const Values& x) {
  for (size_t row = 0; row < d.size(); ++row)
    for (size_t i = 0; i < x.size(); ++i) s[row * x.size() + i] += factor * d[row] * x[i];
}

// s += gate * gradient of the inner loss at `reference`.
void add_gradient(const Problem& p, Memory& s, double gate, const Memory& reference,
                  const double* k, const double* v) {
  const Values x = lifted(p, k);
  Values z1, z3, h, e = read(reference, x, z1, z3, h);
  for (size_t row = 0; row < e.size(); ++row)
    e[row] = (p.l2 ? e[row] + (p.residual ? k[row] : 0.0) : 0.0) - v[row];
  add_outer(s.back(), gate, e, s.size() == 1 ? x : h);
  if (s.size() == 1) return;
  Values d1(h.size()), d3(h.size());
  for (size_t i = 0; i < h.size(); ++i) {
    double b = 0;
    for (size_t row = 0; row < e.size(); ++row) b += reference.back()[row * h.size() + i] * e[row];
    d1[i] = b * z3[i] * silu_slope(z1[i]);
    d3[i] = b * silu(z1[i]);
  }
  add_outer(s[0], gate, d1, x);
  if (s.size() == 3) add_outer(s[1], gate, d3, x);
}

// S_t = theta S_{t-1} + G_t, M_t = alpha M_{t-1} - eta O_t, y_t = M_t(phi(q_t)), for one head.
void recurrence(const Problem& p, int64_t n, int64_t head, Values& o) {
  const cpu::OmegaSequence& sequence = p.sequences[n];
  auto at = [&](const char* name, int64_t token, int64_t width) {
    return p.in.at(name).data() + ((sequence.begin + token) * kHeads + head) * width;
  };
  Memory m, s, reference;
  for (int l = 0; l < p.matrices; ++l) {
    const int64_t size = p.rows(l) * p.cols(l);
    const double* start = p.in.at(Problem::weight(l)).data() + (n * kHeads + head) * size;
    m.emplace_back(start, start + size);
    s.emplace_back(size, 0.0);
  }
  for (int64_t t = 0; t < sequence.end - sequence.begin; ++t) {
    if (t % p.chunk == 0) reference = m;
    for (Values& matrix : s)
      for (double& x : matrix) x *= p.momentum ? std::exp(*at("log_theta", t, 1)) : 0.0;
    for (int64_t j = 0; j < p.window && j <= t; ++j)
      add_gradient(p, s, at("gamma", t, p.window)[j], reference, at("k", t - j, kKey),
                   at("v", t - j, p.value()));
    const bool writes = p.ns_steps == 0 || t % p.ns_every == p.ns_every - 1;
    for (int l = 0; l < p.matrices; ++l) {
      const Values step = p.ns_steps > 0 && writes ? orthogonalised(p, l, s[l]) : s[l];
      for (size_t i = 0; i < step.size(); ++i) {
        m[l][i] *= std::exp(*at("log_alpha", t, 1));
        if (writes) m[l][i] -= *at("eta", t, 1) * step[i];
      }
    }
    Values z1, z3, h;
    const Values y = read(m, lifted(p, at("q", t, kKey)), z1, z3, h);
    for (size_t row = 0; row < y.size(); ++row)
      o[((sequence.begin + t) * kHeads + head) * p.value() + row] =
          y[row] + (p.residual ? at("q", t, kKey)[row] : 0.0);
  }
}

void test_forward(const Problem& p) {
  Values wanted(kTokens * kHeads * p.value(), NAN);
  for (int64_t n = 0; n < 2; ++n)
    for (int64_t head = 0; head < kHeads; ++head) recurrence(p, n, head, wanted);
  const Values o = forward(p);
  for (size_t i = 0; i < o.size(); ++i) CHECK_CLOSE(o[i], wanted[i], 1e-10);
}

std::map<std::string, Values> backward(const Problem& p, const Values& grad_o) {
  const cpu::ParallelFor parallel = check::two_threads();
  Checkpoints saved;
  forward(p, &saved);
  std::map<std::string, Values> grads;
  for (const auto& [name, values] : p.in) grads[name].assign(values.size(), NAN);
  cpu::OmegaBackward args{};
  args.options = p.options();
  args.in = p.inputs();
  for (int l = 0; l < p.matrices; ++l) {
    args.weights_checkpoints[l] = saved.weights[l].data();
    args.momentum_checkpoints[l] = saved.momentum[l].data();
  }
  args.grad_o = {{grad_o.data(), cpu::Dtype::f64},
                 true,
                 {kTokens * kHeads * p.value(), kHeads * p.value(), p.value(), 1}};
  auto out = [&](const char* name) {
    return cpu::MutableArray{grads[name].data(), cpu::Dtype::f64};
  };
  args.grad_q = out("q");
  args.grad_k = out("k");
  args.grad_v = out("v");
  args.grad_gamma = out("gamma");
  args.grad_eta = out("eta");
  args.grad_log_alpha = out("log_alpha");
  if (p.momentum) args.grad_log_theta = out("log_theta");
  for (int l = 0; l < p.matrices; ++l) args.grad_weights[l] = out(Problem::weight(l).c_str());
  Values grad_scales(2 * kHeads * (p.degree + 1), 0.0);
  args.grad_scales = grad_scales.data();
  Values scratch(cpu::omega_rule_scratch(args.options, args.in, true, parallel), NAN);
  args.scratch = scratch.data();
  cpu::omega_rule_backward(args, parallel);
  return grads;
}

void test_backward(Problem p) {
  const Values grad_o = check::normal<double>(kTokens * kHeads * p.value(), 50);
  const std::map<std::string, Values> grads = backward(p, grad_o);
  auto loss = [&] {
    const Values o = forward(p);
    double sum = 0;
    for (size_t i = 0; i < o.size(); ++i) sum += o[i] * grad_o[i];
    return sum;
  };
  for (auto& [name, values] : p.in) {
    if (name == "log_theta" && !p.momentum) continue;
    const Values centre = values, direction = check::normal<double>(values.size(), 60);
    const double step = 1e-6;
    double wanted = 0;
    for (double sign : {1.0, -1.0}) {
      for (size_t i = 0; i < values.size(); ++i) values[i] = centre[i] + sign * step * direction[i];
      wanted += sign * loss() / (2 * step);
    }
    values = centre;
    double got = 0;
    for (size_t i = 0; i < values.size(); ++i) got += grads.at(name)[i] * direction[i];
    CHECK_CLOSE(got, wanted, 1e-5);
  }
}

void test_omega_rule() {
  const Problem problems[] = {
      {1, 4, true, false, 0, 0},
      {3, 4, true, true, 0, 0},
      {6, 4, true, true, 2, 0},
      {3, 1, true, true, 0, 0},
      {3, 32, false, true, 2, 0},
      {3, 4, true, true, 0, 2},
      {6, 4, false, false, 2, 2},
      {3, 4, true, true, 2, 0, true},
      {3, 4, true, true, 0, 0, true, 2},
      {6, 4, false, true, 2, 0, false, 2},
      {3, 4, true, true, 2, 2, true, 2},
      {3, 4, true, true, 0, 0, false, 3},
      {6, 4, false, false, 2, 2, true, 3},
  };
  for (Problem p : problems) {
    p.fill();
    test_forward(p);
    test_backward(p);
  }
}

int main() { return check::run(test_omega_rule); }
