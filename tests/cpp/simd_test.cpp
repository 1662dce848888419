// simd.h: the dtype conversions over every 16-bit value, and the vector loops with their
// remainders.
#include "check.h"

void test_simd();
int main() { return check::run(test_simd); }

#include "kernels/cpu/isa_begin.h"
// after isa_begin.h
#include "kernels/cpu/simd.h"

namespace cpu = atlas::kernels::cpu::ATLAS_ISA;

// binary16 by its definition.
double half_value(uint32_t h) {
  const int exponent = (h >> 10) & 31;
  const double mantissa = h & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024.0 + mantissa, exponent - 25);
  return h & 0x8000 ? -magnitude : magnitude;
}

void test_half() {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float value = cpu::half_to_float(static_cast<uint16_t>(h));
    if ((h & 0x7c00) == 0x7c00) {
      CHECK((h & 0x3ff) ? std::isnan(value) : std::isinf(value));
      if (h & 0x3ff) continue;
    } else {
      CHECK(value == half_value(h) && std::signbit(value) == ((h & 0x8000) != 0));
    }
    CHECK(cpu::float_to_half(value) == h);
  }
  // Between neighbours: nearest, and the even one at the exact middle.
  for (uint32_t h = 0; h < 0x7bff; ++h) {
    const float low = static_cast<float>(half_value(h)),
                high = static_cast<float>(half_value(h + 1));
    const float middle = 0.5f * (low + high);
    CHECK(cpu::float_to_half(middle) == ((h & 1) ? h + 1 : h));
    CHECK(cpu::float_to_half(std::nextafter(middle, low)) == h);
    CHECK(cpu::float_to_half(std::nextafter(middle, high)) == h + 1);
  }
  CHECK(cpu::float_to_half(65519.0f) == 0x7bff);
  CHECK(cpu::float_to_half(65520.0f) == 0x7c00);
  CHECK(cpu::float_to_half(1e-8f) == 0);
  CHECK((cpu::float_to_half(NAN) & 0x7c00) == 0x7c00 && (cpu::float_to_half(NAN) & 0x3ff) != 0);
}

void test_bf16() {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float value = cpu::bf16_to_float(static_cast<uint16_t>(h));
    if (std::isnan(value)) {
      CHECK(std::isnan(cpu::bf16_to_float(cpu::float_to_bf16(value))));
      continue;
    }
    CHECK(cpu::float_to_bf16(value) == h);
    const uint32_t middle = (h << 16) | 0x8000u;  // halfway to the next value away from zero
    if ((h & 0x7fff) >= 0x7f80) continue;
    CHECK(cpu::float_to_bf16(cpu::bits_to_float(middle)) == ((h & 1) ? h + 1 : h));
    CHECK(cpu::float_to_bf16(cpu::bits_to_float(middle - 1)) == h);
    CHECK(cpu::float_to_bf16(cpu::bits_to_float(middle + 1)) == h + 1);
  }
}

template <class T>
void test_loops() {
  const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-13;
  for (int64_t n = 0; n < 70; ++n) {
    const std::vector<T> x = check::normal<T>(n, 1), y = check::normal<T>(n, 2);
    double dot = 0;
    for (int64_t i = 0; i < n; ++i) dot += double(x[i]) * y[i];
    CHECK_CLOSE(cpu::dot(x.data(), y.data(), n), dot, tolerance);
    std::vector<T> added = y, scaled = y;
    cpu::axpy(added.data(), T(0.75), x.data(), n);
    cpu::scale_add(scaled.data(), T(0.5), T(0.75), x.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      CHECK_CLOSE(added[i], y[i] + 0.75 * x[i], tolerance);
      CHECK_CLOSE(scaled[i], 0.5 * y[i] + 0.75 * x[i], tolerance);
    }
  }
}

void test_strided_rows() {
  using atlas::kernels::cpu::Dtype;
  const std::vector<double> source = check::normal<double>(3 * 40, 5);
  for (int64_t stride : {1, 3}) {
    std::vector<float> row(40), back(41);
    cpu::load_array(row.data(), {source.data(), Dtype::f64}, stride == 1 ? 2 : 0, 40, stride);
    cpu::store_array({back.data(), Dtype::f32}, 1, row.data(), 40);
    for (int64_t i = 0; i < 40; ++i)
      CHECK(back[i + 1] == static_cast<float>(source[(stride == 1 ? 2 : 0) + i * stride]));
  }
}

void test_simd() {
  test_half();
  test_bf16();
  test_loops<float>();
  test_loops<double>();
  test_strided_rows();
}
