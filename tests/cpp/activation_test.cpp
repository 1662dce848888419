// activation.h: values and both derivatives against the mathematical library, in float and double.
#include "check.h"

void test_activations();
int main() { return check::run(test_activations); }

#include "kernels/cpu/isa_begin.h"
// after isa_begin.h
#include "kernels/cpu/activation.h"

namespace cpu = atlas::kernels::cpu::ATLAS_ISA;
using atlas::kernels::cpu::Activation;

struct Wanted {
  double value, slope, curve;
};

Wanted wanted_of(Activation activation, double z) {
  if (activation == Activation::identity) return {z, 1, 0};
  if (activation == Activation::silu) {
    const double s = 1 / (1 + std::exp(-z));
    return {z * s, s * (1 + z * (1 - s)), s * (1 - s) * (2 + z * (1 - 2 * s))};
  }
  const double normal = 0.5 * std::erfc(-z / std::sqrt(2.0));
  const double density = std::exp(-0.5 * z * z) / std::sqrt(2 * M_PI);
  return {z * normal, normal + z * density, density * (2 - z * z)};
}

// `relative` holds where the value itself is the scale: the tails keep their digits.
template <class T>
void test_type(double relative, double absolute) {
  for (Activation activation : {Activation::gelu, Activation::silu, Activation::identity}) {
    std::vector<T> z;
    for (double x = -12; x <= 12; x += 1.0 / 1024) z.push_back(static_cast<T>(x));
    z.resize(z.size() / cpu::kWidth<T> * cpu::kWidth<T>);
    std::vector<T> value(z.size()), slope(z.size()), curve(z.size());
    cpu::each_activated(activation, z.data(), static_cast<int64_t>(z.size()),
                        [&](int64_t i, cpu::Activated<T> act) {
                          cpu::store(value.data() + i, act.value);
                          cpu::store(slope.data() + i, act.slope);
                          cpu::store(curve.data() + i, act.curve);
                        });
    for (size_t i = 0; i < z.size(); ++i) {
      const Wanted wanted = wanted_of(activation, static_cast<double>(z[i]));
      CHECK(std::abs(value[i] - wanted.value) <= relative * std::abs(wanted.value));
      CHECK(std::abs(slope[i] - wanted.slope) <= absolute);
      CHECK(std::abs(curve[i] - wanted.curve) <= absolute);
    }
  }
}

template <class T>
void test_extremes() {
  std::vector<T> z(cpu::kWidth<T>, T(0)), value(z.size()), slope(z.size());
  for (Activation activation : {Activation::gelu, Activation::silu})
    for (T x : {T(0), T(1e4), T(-1e4), T(1e18), T(-1e18), static_cast<T>(NAN)}) {
      z[0] = x;
      cpu::each_activated(activation, z.data(), cpu::kWidth<T>,
                          [&](int64_t i, cpu::Activated<T> act) {
                            cpu::store(value.data() + i, act.value);
                            cpu::store(slope.data() + i, act.slope);
                          });
      if (std::isnan(x)) {
        CHECK(std::isnan(value[0]) && std::isnan(slope[0]));
        continue;
      }
      CHECK(std::abs(value[0] - (x > 0 ? x : T(0))) <= T(1e-18));
      CHECK(std::abs(slope[0] - (x > 0 ? T(1) : x == 0 ? T(0.5) : T(0))) <= T(1e-6));
    }
}

void test_activations() {
  test_type<float>(1e-5, 5e-7);  // e^(-z²/2) has the rounding of z² in it
  test_type<double>(1e-12, 1e-14);
  test_extremes<float>();
  test_extremes<double>();
}
