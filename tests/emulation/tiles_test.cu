// tile.cuh, reduce.cuh and vec.cuh by themselves: every tile, width and depth against plain loops,
// every width of reduction, conversions of special values, in every order of threads and copies.
#include <chrono>
#include <limits>

#include "harness.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/tile.cuh"
#include "kernels/cuda/vec.cuh"

namespace tiles_under_test {

using namespace atlas::kernels::cuda;

// Rows of A, 16 for each warp; of a tile 16 wide one warp has all.
template <int kCols>
constexpr int kRowsOfA = kCols == 16 ? 16 : 32;

// c [rows, kCols] = op(a) b, and again by way of shared memory in `kept`. a [rows, width] or
// transposed [depth, rows], stored element by element; b [depth, kCols] comes by cp.async.
template <class Tile, bool kTransposed, int kCols>
ATLAS_KERNEL void product_kernel(const typename Tile::Element* a, const typename Tile::Element* b,
                                 float* c, float* kept, int width, int depth) {
  using Element = typename Tile::Element;
  constexpr int kRows = kRowsOfA<kCols>, kPiece = 16 / static_cast<int>(sizeof(Element));
  constexpr int kLd = kCols + Tile::kPad;
  DYNAMIC_SHARED(Element, shared);
  const int across = kTransposed ? kRows : width, down = kTransposed ? depth : kRows;
  const int lda = across + Tile::kPad, threads = static_cast<int>(blockDim.x);
  Element* const tile_b = shared + down * lda;
  Element* const tile_c = tile_b + depth * kLd;
  const int me = static_cast<int>(threadIdx.x), first = 16 * (me / kWarp);
  for (int i = me; i < down * across; i += threads)
    shared[Tile::at(i / across, i % across, lda)] = a[i];
  for (int i = me; i < depth * kCols / kPiece; i += threads) {
    const int row = i / (kCols / kPiece), column = i % (kCols / kPiece) * kPiece;
    cp_async16(tile_b + Tile::at(row, column, kLd), b + row * kCols + column);
  }
  cp_async_commit();
  cp_async_wait<0>();
  __syncthreads();
  typename Tile::template Rows<kCols> rows;
  rows.clear();
  Tile::template multiply<kTransposed, kCols>(rows, shared, lda, first, tile_b, kLd, depth);
  rows.visit([&](int row, int column, float& v0, float& v1) {
    c[(first + row) * kCols + column] = v0;
    c[(first + row) * kCols + column + 1] = v1;
    Tile::store2(tile_c + Tile::at(first + row, column, kLd), v0, v1);
  });
  __syncthreads();
  for (int i = 2 * me; i < kRows * kCols; i += 2 * threads) {
    float v0, v1;
    Tile::load2(tile_c + Tile::at(i / kCols, i % kCols, kLd), v0, v1);
    kept[i] = v0;
    kept[i + 1] = Tile::load(tile_c[Tile::at(i / kCols, i % kCols + 1, kLd)]);
    if (!(kept[i + 1] == v1)) kept[i] = NAN;
  }
}

template <int kLanes>
ATLAS_KERNEL void group_kernel(const float* x, float* sum, float* most) {
  sum[threadIdx.x] = group_sum<kLanes>(x[threadIdx.x]);
  most[threadIdx.x] = group_max<kLanes>(x[threadIdx.x]);
}

// Two groups of kWarps; the line is used again at once.
template <int kWarps>
ATLAS_KERNEL void warps_kernel(const float* x, float* sum, float* most, float* twice) {
  SHARED_ARRAY(float, lines, 2 * kWarps);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  float* const line = lines + warp / kWarps * kWarps;
  const float value = x[threadIdx.x];
  sum[threadIdx.x] = warps_sum<kWarps>(value, line, warp % kWarps);
  twice[threadIdx.x] = warps_sum<kWarps>(2 * value, line, warp % kWarps);
  most[threadIdx.x] = warps_max<kWarps>(value, line, warp % kWarps);
}

// x rounded to T, and what comes back.
template <class T>
ATLAS_KERNEL void pack_kernel(const float* x, T* packed, float* back, int packs) {
  constexpr int kWidth = kPackWidth<T>;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= packs) return;
  float values[kWidth], again[kWidth];
  for (int j = 0; j < kWidth; ++j) values[j] = x[i * kWidth + j];
  const Pack16 pack16 = pack<T>(values);
  *reinterpret_cast<Pack16*>(packed + i * kWidth) = pack16;
  unpack<T>(again, pack16);
  for (int j = 0; j < kWidth; ++j) back[i * kWidth + j] = again[j];
}

template <class T>
ATLAS_KERNEL void unpack_kernel(const T* packed, float* x, int packs) {
  constexpr int kWidth = kPackWidth<T>;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= packs) return;
  float values[kWidth];
  unpack<T>(values, *reinterpret_cast<const Pack16*>(packed + i * kWidth));
  for (int j = 0; j < kWidth; ++j) x[i * kWidth + j] = values[j];
}

}  // namespace tiles_under_test

namespace {

using namespace tiles_under_test;
using harness::Buffer;
using harness::that;

template <class Tile>
const char* name() {
  return std::is_same_v<Tile, FloatTile>        ? "FloatTile"
         : std::is_same_v<Tile, Tf32Tile>       ? "Tf32Tile"
         : std::is_same_v<Tile, HalfTile<bf16>> ? "HalfTile<bf16>"
                                                : "HalfTile<f16>";
}

template <class Tile, bool kTransposed, int kCols>
void product(int depth) {
  using Element = typename Tile::Element;
  constexpr int kRows = kRowsOfA<kCols>;
  const int width = depth == 16 ? 16 : 64;  // beyond depth it must not matter
  const int across = kTransposed ? kRows : width, down = kTransposed ? depth : kRows;
  const auto elements = [](int n, unsigned seed) {
    std::vector<Element> result(n);
    const std::vector<float> values = harness::normal(n, seed);
    for (int i = 0; i < n; ++i) result[i] = Tile::store(values[i]);
    return result;
  };
  const auto operand = [](Element x) -> double {
    if constexpr (std::is_same_v<Tile, Tf32Tile>) return bits_to_float(to_tf32(x));
    return Tile::load(x);
  };
  Buffer<Element> a(elements(down * across, 1), "element", "a");
  Buffer<Element> b(elements(depth * kCols, 2), "element", "b");
  const std::vector<float> nans(kRows * kCols, NAN);
  Buffer<float> c(nans, "float32", "c", true), kept(nans, "float32", "kept", true);
  const size_t shared =
      sizeof(Element) * (down * (across + Tile::kPad) + (depth + kRows) * (kCols + Tile::kPad));
  launch<product_kernel<Tile, kTransposed, kCols>>(1, 2 * kRows, shared, nullptr, a.data(),
                                                   b.data(), c.data(), kept.data(), width, depth);
  double worst = 0;
  bool same = true;
  for (int i = 0; i < kRows; ++i)
    for (int j = 0; j < kCols; ++j) {
      double wanted = 0;
      for (int k = 0; k < depth; ++k)
        wanted += operand(kTransposed ? a[k * across + i] : a[i * across + k]) *
                  operand(b[k * kCols + j]);
      const double difference = std::abs(c[i * kCols + j] - wanted);
      worst = difference <= worst ? worst : difference;  // NaN is worst
      same = same && kept[i * kCols + j] == Tile::load(Tile::store(c[i * kCols + j]));
    }
  const std::string text = std::string(name<Tile>()) + (kTransposed ? ", transposed, " : ", ") +
                           std::to_string(kCols) + " columns, depth " + std::to_string(depth);
  that(worst < 2e-5, "product of " + text + ": " + std::to_string(worst));
  that(same, "results through shared memory of " + text);
}

template <class Tile>
void products() {
  for (int depth = 16; depth <= 64; depth += 16) {
    product<Tile, false, 16>(depth);
    product<Tile, false, 32>(depth);
    product<Tile, false, 64>(depth);
    product<Tile, false, 128>(depth);
    product<Tile, true, 16>(depth);
    product<Tile, true, 32>(depth);
    product<Tile, true, 64>(depth);
    product<Tile, true, 128>(depth);
  }
}

// Whole numbers below zero: sums are exact in any order, and no maximum is 0.
std::vector<float> whole(int n) {
  std::vector<float> values = harness::normal(n, 7);
  for (float& value : values) value = std::min(-1.0f, std::round(value * 1000) - 500);
  values[n / 3] = -std::numeric_limits<float>::infinity();
  return values;
}

void check_groups(Buffer<float>& x, Buffer<float>& sum, Buffer<float>& most, int width,
                  const char* text) {
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t first = i / width * width;
    double total = 0, largest = -HUGE_VAL;
    for (size_t j = first; j < first + width; ++j) {
      total += x[j];
      largest = std::max<double>(largest, x[j]);
    }
    that(sum[i] == total, std::string(text) + " sum of " + std::to_string(width));
    that(most[i] == largest, std::string(text) + " maximum of " + std::to_string(width));
  }
}

template <int kLanes>
void groups() {
  Buffer<float> x(whole(64), "float32", "x");
  const std::vector<float> nans(64, NAN);
  Buffer<float> sum(nans, "float32", "sum", true), most(nans, "float32", "most", true);
  launch<group_kernel<kLanes>>(1, 64, 0, nullptr, x.data(), sum.data(), most.data());
  check_groups(x, sum, most, kLanes, "group");
}

template <int kWarps>
void warps() {
  constexpr int kThreads = 2 * kWarps * kWarp;
  Buffer<float> x(whole(kThreads), "float32", "x");
  const std::vector<float> nans(kThreads, NAN);
  Buffer<float> sum(nans, "float32", "sum", true), most(nans, "float32", "most", true);
  Buffer<float> twice(nans, "float32", "twice", true);
  launch<warps_kernel<kWarps>>(1, kThreads, 0, nullptr, x.data(), sum.data(), most.data(),
                               twice.data());
  check_groups(x, sum, most, kWarps * kWarp, "warps");
  for (int i = 0; i < kThreads; ++i) that(twice[i] == 2 * sum[i], "warps sum, again");
}

// A format by its numbers: bits of the fraction, exponent of the least number, the greatest one.
struct Format {
  int fraction, least;
  double most;
};

double nearest(double value, const Format& format) {
  if (value == 0 || !std::isfinite(value)) return value;
  const double step = std::ldexp(1.0, std::max(std::ilogb(value) - format.fraction, format.least));
  const double result = std::rint(value / step) * step;  // half way: to even
  return std::abs(result) > format.most ? std::copysign(HUGE_VAL, value) : result;
}

double decode(unsigned bits, const Format& format) {
  const int exponent = static_cast<int>(bits >> format.fraction & (0x7fff >> format.fraction));
  const int fraction = static_cast<int>(bits & ((1u << format.fraction) - 1));
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 0x7fff >> format.fraction) return fraction ? NAN : sign * HUGE_VAL;
  const int whole = exponent ? fraction + (1 << format.fraction) : fraction;
  return sign * std::ldexp(whole, format.least + std::max(exponent - 1, 0));
}

bool equal(double got, double wanted) {
  return std::isnan(wanted) ? std::isnan(got)
                            : got == wanted && std::signbit(got) == std::signbit(wanted);
}

template <class T>
void packs(const char* dtype, const Format& format) {
  constexpr int kWidth = kPackWidth<T>;
  std::vector<float> values = {0.0f, -0.0f, 1.0f, HUGE_VALF, -HUGE_VALF, NAN, 3.4e38f, -3.4e38f};
  // Around every power of two of the format and below: on it, half a step beside it, and nearly so.
  for (int exponent = -149; exponent < 128; ++exponent)
    for (const double steps : {0.0, 0.5, 0.4999, 0.5001, 1.0, 1.5, 1.4999, 1.5001, 2.5, -0.25}) {
      const double step = std::ldexp(1.0, std::max(exponent - format.fraction, format.least));
      const double value = std::ldexp(1.0, exponent) + steps * step;
      values.push_back(static_cast<float>(value));
      values.push_back(static_cast<float>(-value));
    }
  for (const float value : {65504.0f, 65519.99f, 65520.0f, 3.3895314e38f, 3.3961775e38f})
    values.push_back(value);
  while (values.size() % kWidth) values.push_back(1.0f);
  const int n = static_cast<int>(values.size());
  Buffer<float> x(values, "float32", "x"), back(std::vector<float>(n, 7), "float32", "back", true);
  Buffer<T> packed(std::vector<T>(n), dtype, "packed", true);
  launch<pack_kernel<T>>((n / kWidth + 63) / 64, 64, 0, nullptr, x.data(), packed.data(),
                         back.data(), n / kWidth);
  for (int i = 0; i < n; ++i) {
    const std::string text = std::string(dtype) + " of " + std::to_string(values[i]);
    that(equal(back[i], nearest(values[i], format)), "pack, unpack: " + text);
    that(equal(to_float(packed[i]), back[i]), "place in a pack: " + text);
  }
}

template <class T>
void unpacks(const char* dtype, const Format& format) {
  constexpr int kWidth = kPackWidth<T>, kAll = 1 << 16;
  std::vector<T> all(kAll);
  for (int i = 0; i < kAll; ++i) all[i].bits = static_cast<uint16_t>(i);
  Buffer<T> packed(all, dtype, "packed");
  Buffer<float> x(std::vector<float>(kAll, 7), "float32", "x", true);
  launch<unpack_kernel<T>>(kAll / kWidth / 64, 64, 0, nullptr, packed.data(), x.data(),
                           kAll / kWidth);
  for (int i = 0; i < kAll; ++i)
    that(equal(x[i], decode(i, format)), std::string("unpack ") + dtype + std::to_string(i));
}

void all() {
  products<HalfTile<bf16>>();
  products<HalfTile<f16>>();
  products<Tf32Tile>();
  products<FloatTile>();
  groups<1>();
  groups<2>();
  groups<4>();
  groups<8>();
  groups<16>();
  groups<32>();
  warps<1>();
  warps<2>();
  warps<4>();
  warps<8>();
  packs<float>("float32", {23, -149, std::numeric_limits<float>::max()});
  packs<bf16>("bfloat16", {7, -133, 3.3895313892515355e38});
  packs<f16>("float16", {10, -24, 65504});
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
  }
  unpacks<bf16>("bfloat16", {7, -133, 0});
  unpacks<f16>("float16", {10, -24, 0});
  atlas::emulation::set_device(75, 40);  // half-depth products, no cp.async
  products<HalfTile<f16>>();
  products<FloatTile>();
  std::printf("%s\n", harness::failures ? "FAILED" : "passed");
  return harness::failures ? 1 : 0;
}
