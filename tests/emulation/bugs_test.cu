// bugs_test [NAME [ORDER]]: all planted bugs in the modes that claim to find them; or one, for the
// sanitizers to find, whose report is then the result.
#include <cstring>
#include <stdexcept>

#include "bugs.cuh"
#include "harness.h"

namespace {

using atlas::kernels::cuda::launch;
using harness::Mode;

// Which sanitizer ends the program on it, whatever the emulator sees.
enum class Kind { plain, race, memory };

struct Bug {
  const char* name;
  Kind kind;
  // Empty: nothing seen. Otherwise the error, or what is wrong with the results.
  std::function<std::string()> run;
  std::vector<Mode> modes;  // each of these finds it
  const char* report;       // a part of what they say
};

const std::vector<Mode> kAnyOrder = {
    {"forward", 1, "early"}, {"reverse", 1, "early"}, {"random", 1, "early"}};
const std::vector<Mode> kNone = {};  // for sanitizers alone
const char* const kWrong = "wrong values";

std::string caught(const std::function<bool()>& is_right) {
  try {
    return is_right() ? "" : kWrong;
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

// A kernel of x [128] and out [128], which starts as zeros; `wanted` computes out[i].
template <auto kKernel>
std::string run(int blocks, int threads, size_t shared, float (*wanted)(const float* x, int i)) {
  const std::vector<float> x = harness::normal(128, 9);
  std::vector<float> out(128, 0.0f);
  return caught([&] {
    launch<kKernel>(blocks, threads, shared, nullptr, x.data(), out.data());
    for (int i = 0; i < 128; ++i)
      if (out[i] != 0 && out[i] != wanted(x.data(), i)) return false;
    return true;
  });
}

float same(const float* x, int i) { return x[i]; }
float mirrored(const float* x, int i) { return x[127 - i]; }
float neighbour(const float* x, int i) { return x[i ^ 1]; }

float following(const float* x, int i) { return x[i + 1]; }

float running_sum(const float* x, int i) {
  float sum = 0;
  for (int j = 0; j <= i; ++j) sum = x[j] + sum;
  return sum;
}

template <int kPending, bool kBarrier>
std::string tile_product() {
  using namespace bugs;
  constexpr int depth = 256;
  const std::vector<bf16> ones(kTile * depth, from_float<bf16>(1.0f));
  std::vector<bf16> steps(kTile * depth);
  float wanted = 0;  // of every element; the stages differ
  for (int i = 0; i < kTile * depth; ++i) {
    const auto step = static_cast<float>(i / kTile % 11);
    steps[i] = from_float<bf16>(step);
    if (i % kTile == 0) wanted += step;
  }
  std::vector<float> c(kTile * kTile);
  return caught([&] {
    launch<tile_product_kernel<bf16, kPending, kBarrier>>(
        1, kTileThreads, 2 * kStageElements * sizeof(bf16), nullptr, ones.data(), steps.data(),
        c.data(), depth);
    for (const float value : c)
      if (value != wanted) return false;
    return true;
  });
}

using bugs::CopyBug;
template <CopyBug kBug>
std::string copies() {
  return run<bugs::copy_kernel<kBug>>(1, 32, 0, same);
}

std::string too_many_threads() { return run<bugs::missing_barrier_kernel>(1, 1056, 0, same); }
std::string too_much_shared() { return run<bugs::missing_barrier_kernel>(1, 32, 164 << 10, same); }

std::string static_not_counted() { return run<bugs::wide_static_kernel>(1, 32, 46 << 10, same); }

const std::vector<Bug>& all_bugs() {
  using namespace bugs;
  static const std::vector<Bug> all = {
      {"missing_barrier", Kind::race,
       [] { return run<missing_barrier_kernel>(1, 128, 0, mirrored); }, kAnyOrder, kWrong},
      {"missing_sync_warp", Kind::race,
       [] { return run<missing_sync_warp_kernel>(1, 32, 0, neighbour); }, kAnyOrder, kWrong},
      {"shuffle_is_no_sync", Kind::race,
       [] { return run<shuffle_is_no_sync_kernel>(1, 32, 0, neighbour); }, kNone, ""},
      {"cross_block",
       Kind::race,
       [] { return run<cross_block_kernel>(8, 32, 0, running_sum); },
       {{"reverse", 1, "early"}, {"random", 1, "early"}},
       kWrong},
      {"weak_wait",
       Kind::plain,
       tile_product<2, true>,
       {{"forward", 1, "late"}, {"random", 1, "late"}},
       kWrong},
      {"overwritten_stage", Kind::race, tile_product<1, false>, {{"random", 1, "early"}}, kWrong},
      {"copy_no_barrier", Kind::race, copies<CopyBug::no_barrier>, kAnyOrder, kWrong},
      {"copy_no_commit", Kind::plain, copies<CopyBug::no_commit>, {{"forward", 1, "late"}}, kWrong},
      {"copy_no_wait", Kind::plain, copies<CopyBug::no_wait>, {{"forward", 1, "late"}}, kWrong},
      {"copy_misaligned", Kind::plain, copies<CopyBug::misaligned>, kAnyOrder, "a multiple of 16"},
      {"shared_write_past_end", Kind::memory,
       [] { return run<shared_write_past_end_kernel>(1, 32, 0, same); }, kAnyOrder,
       "tile: written 0 bytes past its end"},
      {"shared_read_past_end", Kind::memory,
       [] { return run<shared_read_past_end_kernel>(1, 32, 128, following); }, kAnyOrder, kWrong},
      {"global_out_of_bounds", Kind::memory,
       [] { return run<global_out_of_bounds_kernel>(1, 32, 0, same); }, kNone, ""},
      {"uninitialised_shared", Kind::plain,
       [] { return run<uninitialised_shared_kernel>(1, 128, 0, mirrored); }, kAnyOrder, kWrong},
      {"divergent_barrier", Kind::plain,
       [] { return run<divergent_barrier_kernel>(1, 64, 0, same); }, kAnyOrder,
       "divergent __syncthreads()"},
      {"skipped_barrier", Kind::plain, [] { return run<skipped_barrier_kernel>(1, 64, 0, same); },
       kAnyOrder, "exit"},
      {"deadlock", Kind::plain, [] { return run<deadlock_kernel>(1, 64, 0, same); }, kAnyOrder,
       "deadlock"},
      {"mask_mismatch", Kind::plain, [] { return run<mask_mismatch_kernel>(1, 32, 0, same); },
       kAnyOrder, "mask"},
      {"foreign_mask", Kind::plain, [] { return run<foreign_mask_kernel>(1, 32, 0, same); },
       kAnyOrder, "it does not name this lane"},
      {"absent_source", Kind::plain, [] { return run<absent_source_kernel>(1, 32, 0, same); },
       kAnyOrder, "the source lane is not in the mask"},
      {"exited_lane", Kind::plain, [] { return run<exited_lane_kernel>(1, 32, 0, same); },
       kAnyOrder, "exit"},
      {"absent_lanes", Kind::plain, [] { return run<foreign_mask_kernel>(1, 12, 0, same); },
       kAnyOrder, "beyond the block's last thread"},
      {"divergent_shuffle", Kind::plain,
       [] { return run<divergent_shuffle_kernel>(1, 32, 0, same); }, kAnyOrder,
       "divergent shuffle"},
      {"too_many_threads", Kind::plain, too_many_threads, kAnyOrder,
       "block.x: wanted 1 to 1024, got 1056"},
      {"too_much_shared", Kind::plain, too_much_shared, kAnyOrder, "shared memory: wanted"},
      {"static_not_counted", Kind::plain, static_not_counted, kAnyOrder,
       "more shared memory than the launch's 49152 bytes"},
  };
  return all;
}

void check(const Bug& bug) {
#if defined(ATLAS_EMULATION_THREAD)
  if (bug.kind == Kind::race) return;
#elif defined(ATLAS_EMULATION_ADDRESS)
  if (bug.kind == Kind::memory) return;
#endif
  for (const Mode& mode : bug.modes) {
    mode.set();
    const std::string seen = bug.run();
    std::printf("%s, %s: %s\n", bug.name, mode.name().c_str(), seen.c_str());
    harness::that(!seen.empty() && seen.find(bug.report) != std::string::npos, bug.name);
  }
}

}  // namespace

int main(int count, char** arguments) {
  for (const Bug& bug : all_bugs()) {
    if (count == 1) check(bug);
    if (count == 1 || std::strcmp(arguments[1], bug.name) != 0) continue;
    Mode{count > 2 ? arguments[2] : "forward", 1, "early"}.set();
    std::printf("%s: %s\n", bug.name, bug.run().c_str());
  }
  if (count == 1) std::printf("%s\n", harness::failures ? "FAILED" : "passed");
  return harness::failures ? 1 : 0;
}
