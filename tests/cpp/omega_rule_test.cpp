// The Omega rule's chunk form against the recurrence, token by token, and its backward against
// directional differences, one input at a time.
#include "kernels/cpu/omega_rule.h"

#include <map>
#include <string>

#include "check.h"

namespace cpu = atlas::kernels::cpu;
using Values = std::vector<double>;

constexpr int64_t kHeads = 2, kKey = 3, kTokens = 19;
const double kTable[6] = {2.5, -2.6, 1.0, 1.875, -1.25, 0.375};

struct Problem {
  int64_t window, chunk;
  bool l2, momentum;
  int degree, ns_steps;
  bool residual = false;  // then V = K
  int64_t ns_every = 3;
  Values roots{};
  std::map<std::string, Values> in{};
  std::vector<cpu::OmegaSequence> sequences{};
  int64_t checkpoints = 0;

  int64_t value() const { return residual ? kKey : 5; }
  int64_t features() const { return degree ? cpu::poly_feature_dim(kKey, degree) : kKey; }

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
    in["weights"] = check::normal<double>(2 * kHeads * value() * features(), seed);
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
    result.degree = degree;
    result.l2 = l2;
    result.residual = residual;
    result.scales = cpu::default_poly_scales();
    result.roots = roots.data();
    result.ns = {kTable, ns_steps, 1.0, 1e-7};
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
    const int64_t size = value() * features();
    result.weights = {
        {in.at("weights").data(), cpu::Dtype::f64}, true, {kHeads * size, size, features(), 1}};
    result.sequences = sequences.data();
    result.num_sequences = static_cast<int64_t>(sequences.size());
    result.tokens = kTokens;
    return result;
  }
};

struct Checkpoints {
  Values weights, momentum;
};

Values forward(const Problem& p, Checkpoints* saved = nullptr) {
  const cpu::ParallelFor parallel = check::two_threads();
  Values o(kTokens * kHeads * p.value(), NAN);
  cpu::OmegaForward args{};
  args.options = p.options();
  args.in = p.inputs();
  args.o = {o.data(), cpu::Dtype::f64};
  if (saved) {
    saved->weights.assign(p.checkpoints * kHeads * p.value() * p.features(), NAN);
    saved->momentum = saved->weights;
    args.weights_checkpoints = saved->weights.data();
    if (p.momentum) args.momentum_checkpoints = saved->momentum.data();
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

Values orthogonalised(const Problem& p, const Values& s) {
  const cpu::ParallelFor parallel = check::two_threads();
  Values out(s.size());
  Values scratch(
      cpu::newton_schulz_batch_scratch(p.value(), p.features(), p.ns_steps, false, true, parallel));
  cpu::newton_schulz_batch({{s.data(), cpu::Dtype::f64},
                            {},
                            {out.data(), cpu::Dtype::f64},
                            1,
                            p.value(),
                            p.features(),
                            p.options().ns,
                            scratch.data(),
                            true},
                           parallel);
  return out;
}

// S_t = theta S_{t-1} + G_t, M_t = alpha M_{t-1} - eta O_t, y_t = M_t phi(q_t), for one head.
void recurrence(const Problem& p, int64_t n, int64_t head, Values& o) {
  const cpu::OmegaSequence& sequence = p.sequences[n];
  const int64_t d = p.features(), size = p.value() * d;
  auto at = [&](const char* name, int64_t token, int64_t width) {
    return p.in.at(name).data() + ((sequence.begin + token) * kHeads + head) * width;
  };
  const double* start = p.in.at("weights").data() + (n * kHeads + head) * size;
  Values m(start, start + size), s(size, 0.0), reference;
  for (int64_t t = 0; t < sequence.end - sequence.begin; ++t) {
    if (t % p.chunk == 0) reference = m;
    for (double& x : s) x *= p.momentum ? std::exp(*at("log_theta", t, 1)) : 0.0;
    for (int64_t j = 0; j < p.window && j <= t; ++j) {
      const Values x = lifted(p, at("k", t - j, kKey));
      for (int64_t row = 0; row < p.value(); ++row) {
        double error = -at("v", t - j, p.value())[row];
        if (p.l2 && p.residual) error += at("k", t - j, kKey)[row];
        for (int64_t i = 0; p.l2 && i < d; ++i) error += reference[row * d + i] * x[i];
        for (int64_t i = 0; i < d; ++i)
          s[row * d + i] += at("gamma", t, p.window)[j] * error * x[i];
      }
    }
    const bool writes = p.ns_steps == 0 || t % p.ns_every == p.ns_every - 1;
    const Values step = p.ns_steps > 0 && writes ? orthogonalised(p, s) : s;
    const Values u = lifted(p, at("q", t, kKey));
    for (int64_t row = 0; row < p.value(); ++row) {
      double y = p.residual ? at("q", t, kKey)[row] : 0.0;
      for (int64_t i = 0; i < d; ++i) {
        double& weight = m[row * d + i];
        weight *= std::exp(*at("log_alpha", t, 1));
        if (writes) weight -= *at("eta", t, 1) * step[row * d + i];
        y += weight * u[i];
      }
      o[((sequence.begin + t) * kHeads + head) * p.value() + row] = y;
    }
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
  args.weights_checkpoints = saved.weights.data();
  args.momentum_checkpoints = saved.momentum.data();
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
  args.grad_weights = out("weights");
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
      {1, 4, true, false, 0, 0},  {3, 4, true, true, 0, 0},       {6, 4, true, true, 2, 0},
      {3, 1, true, true, 0, 0},   {3, 32, false, true, 2, 0},     {3, 4, true, true, 0, 2},
      {6, 4, false, false, 2, 2}, {3, 4, true, true, 2, 0, true},
  };
  for (Problem p : problems) {
    p.fill();
    test_forward(p);
    test_backward(p);
  }
}

int main() { return check::run(test_omega_rule); }
