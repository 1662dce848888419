// Correct kernels in every order of threads and blocks, and with copies that land early and late.
#include <chrono>
#include <limits>

#include "harness.h"
#include "kernels.cuh"

namespace {

using namespace kernels_under_test;
using harness::Buffer;
using harness::that;

double error(const float* got, const std::vector<double>& wanted) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    difference += (got[i] - wanted[i]) * (got[i] - wanted[i]);
    size += wanted[i] * wanted[i];
  }
  return std::sqrt(difference / size);
}

std::vector<double> product(const std::vector<double>& a, const std::vector<double>& b, int rows,
                            int depth, int columns) {
  std::vector<double> c(static_cast<size_t>(rows) * columns);
  for (int i = 0; i < rows; ++i)
    for (int k = 0; k < depth; ++k)
      for (int j = 0; j < columns; ++j) c[i * columns + j] += a[i * depth + k] * b[k * columns + j];
  return c;
}

template <class T>
std::vector<bf16> rounded(const std::vector<float>& x, std::vector<double>& wide) {
  std::vector<bf16> result(x.size());
  wide.resize(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const T narrow = from_float<T>(x[i]);
    wide[i] = to_float(narrow);
    result[i].bits = narrow.bits;
  }
  return result;
}

template <class T>
void tile_product(const char* dtype) {
  constexpr int depth = 128;
  std::vector<double> wide_a, wide_b;
  Buffer<bf16> a(rounded<T>(harness::normal(kTile * depth, 1), wide_a), dtype, "a");
  Buffer<bf16> b(rounded<T>(harness::normal(depth * kTile, 2), wide_b), dtype, "b");
  Buffer<float> c(std::vector<float>(kTile * kTile, NAN), "float32", "c", true);
  launch<tile_product_kernel<T, 1, true>>(1, kTileThreads, 2 * kStageElements * sizeof(bf16),
                                          nullptr, a.data(), b.data(), c.data(), depth);
  that(error(c.data(), product(wide_a, wide_b, kTile, depth, kTile)) < 1e-6, "tile product");
}

void tf32_product() {
  constexpr int depth = 24;
  const std::vector<float> x = harness::normal(16 * depth, 3), y = harness::normal(depth * 8, 4);
  std::vector<double> wide_x, wide_y;
  for (const float value : x) wide_x.push_back(bits_to_float(to_tf32(value)));
  for (const float value : y) wide_y.push_back(bits_to_float(to_tf32(value)));
  Buffer<float> a(x, "float32", "a"), b(y, "float32", "b");
  Buffer<float> c(std::vector<float>(16 * 8, NAN), "float32", "c", true);
  launch<tf32_product_kernel>(1, 32, 0, nullptr, a.data(), b.data(), c.data(), depth);
  that(error(c.data(), product(wide_x, wide_y, 16, depth, 8)) < 1e-6, "tf32 product");
}

void block_sum() {
  constexpr int n = 5000;
  const std::vector<float> values = harness::normal(n, 5);
  double wanted = 0;
  for (const float value : values) wanted += value;
  Buffer<float> x(values, "float32", "x"), out(std::vector<float>(1, 0.0f), "float32", "out");
  launch<block_sum_kernel>(7, 96, 0, nullptr, x.data(), out.data(), n);
  that(std::abs(out[0] - wanted) < 1e-3, "block sum");
}

void halves() {
  std::vector<int> values(32);
  unsigned positive = 0;
  for (int i = 0; i < 32; ++i) {
    values[i] = i * 7 % 5 - 2;
    positive |= values[i] > 0 ? 1u << i : 0;
  }
  Buffer<int> x(values, "int32", "x"), last(std::vector<int>(32), "int32", "last", true);
  Buffer<unsigned> votes(std::vector<unsigned>(32), "uint32", "votes", true);
  launch<halves_kernel>(1, 32, 0, nullptr, x.data(), votes.data(), last.data());
  for (int i = 0; i < 32; ++i) {
    that(votes[i] == (positive & (0x55555555u << i % 2)), "ballot");
    that(last[i] == values[30 + i % 2], "shuffle");
  }
}

void ring() {
  std::vector<double> values(32);
  for (int i = 0; i < 32; ++i) values[i] = i + 0.5;
  Buffer<double> x(values, "float64", "x"), out(std::vector<double>(32), "float64", "out", true);
  launch<ring_kernel>(1, 32, 0, nullptr, x.data(), out.data(), 5);
  for (int i = 0; i < 32; ++i) that(out[i] == values[((i ^ 1) + 5) % 32], "ring");
}

// Halfway cases, limits, subnormals and NaN, besides ordinary numbers.
void rounding() {
  const float inf = std::numeric_limits<float>::infinity();
  std::vector<float> values = {0.0f,        -0.0f,       1.0f,      1.00390625f,    1.01171875f,
                               65504.0f,    65519.99f,   65520.0f,  -70000.0f,      0x1p-24f,
                               0x1p-25f,    0x1.8p-25f,  0x1p-14f,  0x1.ffep-15f,   3.4e38f,
                               inf,         -inf,        0x1p-140f, 1.00048828125f, 1.001464843f,
                               -0x1.7p-20f, 0x1.fffp-15f};
  for (const float value : harness::normal(1000, 6)) values.push_back(value * 1e-5f);
  values.push_back(NAN);
  const auto n = static_cast<int>(values.size());
  const std::vector<float> nans(n, NAN);
  Buffer<float> x(values, "float32", "x"), as_bf16(nans, "float32", "as_bf16", true);
  Buffer<float> as_f16(nans, "float32", "as_f16", true), as_tf32(nans, "float32", "as_tf32", true);
  launch<round_kernel>((n + 63) / 64, 64, 0, nullptr, x.data(), as_bf16.data(), as_f16.data(),
                       as_tf32.data(), n);
  // The spacing of each type at x, in double: rint rounds to nearest even.
  const auto wanted = [](double value, int bits, int lowest, double most) {
    if (value == 0 || !std::isfinite(value)) return value;
    const double step = std::ldexp(1.0, std::max(std::ilogb(value) - bits, lowest));
    const double nearest = std::rint(value / step) * step;
    return std::abs(nearest) > most ? std::copysign(HUGE_VAL, value) : nearest;
  };
  for (int i = 0; i + 1 < n; ++i) {
    const std::string text = std::to_string(values[i]);
    that(as_bf16[i] == wanted(values[i], 7, -133, 3.3895313892515355e38), "bf16 of " + text);
    that(as_f16[i] == wanted(values[i], 10, -24, 65504), "f16 of " + text);
    if (std::isfinite(values[i]))
      that(std::abs(as_tf32[i] - values[i]) <= std::max(std::abs(values[i]) * 0x1p-11f, 0x1p-137f),
           "tf32 of " + text);
  }
  that(std::isnan(as_bf16[n - 1]) && std::isnan(as_f16[n - 1]) && std::isnan(as_tf32[n - 1]),
       "NaN stays NaN");
}

void all() {
  tile_product<bf16>("bfloat16");
  tile_product<f16>("float16");
  tf32_product();
  block_sum();
  halves();
  ring();
  rounding();
}

}  // namespace

int main() {
  for (const harness::Mode& mode : harness::modes()) {
    mode.set();
    const int before = harness::failures;
    const auto start = std::chrono::steady_clock::now();
    all();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    std::printf("%s: %d failures, %.3f s\n", mode.name().c_str(), harness::failures - before,
                seconds.count());
    atlas::emulation::set_trace("");  // one mode's launches are enough
  }
  atlas::emulation::set_order("forward", 1);
  atlas::emulation::set_device(75, 40);  // half-depth products, no cp.async
  tile_product<f16>("float16");
  const atlas::emulation::Counters counters = atlas::emulation::counters();
  that(counters.mma > 0 && counters.ldmatrix > 0 && counters.async_copies > 0, "counters");
  std::printf("%s\n", harness::failures ? "FAILED" : "passed");
  return harness::failures ? 1 : 0;
}
