#include <algorithm>
#include <limits>

#include "kernels/cuda/capabilities.h"
#include "kernels/cuda/exp_omega_grads.cuh"
#include "kernels/cuda/exp_omega_plan.h"
#include "kernels/cuda/launch.cuh"

namespace atlas::kernels::cuda {
namespace {

// Beside the dynamic shared memory: ExpOmegaWork, ExpOmegaGrads.
constexpr int64_t kStaticBytes = 3 << 9;

static_assert(sizeof(ExpOmegaWork) + sizeof(ExpOmegaGrads) <= kStaticBytes, "static shared memory");

// So many warps as the largest product of a chunk has tiles, in powers of two.
int block_threads_for(const OmegaOptions& o) {
  const auto tiles = [](int64_t rows, int64_t columns) {
    return (rows + kTileRows - 1) / kTileRows * ((columns + kTileColumns - 1) / kTileColumns);
  };
  const int64_t rows = o.sizes.rows;
  const int64_t most =
      std::max(tiles(rows + o.chunk, kKeyBlock), tiles(rows, std::max(row_width(o), o.value)));
  int warps = 2;
  while (warps < kOmegaWarps && warps < most) warps *= 2;
  return warps * kWarp;
}

// Lays the pass's buffers out; true if all that does not grow with the sequence is in shared
// memory.
bool take(OmegaPass pass, OmegaArena& arena, const ExpOmegaOptions& options) {
  ExpOmegaWork work{};
  ExpOmegaGrads grads{};
  if (pass == OmegaPass::backward) return take_exp_backward(work, grads, arena, options, true);
  return take_exp_forward(work, arena, options);
}

}  // namespace

OmegaPlan exp_omega_rule_plan(OmegaPass pass, const ExpOmegaOptions& options, Dtype dtype,
                              bool allow_tf32, int64_t items, int capability, int multiprocessors,
                              int limit) {
  if (limit < 0) limit = shared_kibibytes(capability) << 10;
  const ExpOmegaOptions o = sized(options, 1);
  constexpr int64_t kFloat = sizeof(float);
  OmegaArena all{nullptr, nullptr, std::numeric_limits<int64_t>::max()};
  take(pass, all, o);
  const int64_t most = (limit - kStaticBytes) / kFloat;
  OmegaArena arena{nullptr, nullptr, std::min(all.shared_used, most)};
  OmegaPlan plan{};
  plan.slices = 1;
  plan.on_chip = take(pass, arena, o);
  plan.tensor_cores = capability >= 80 && (dtype != Dtype::f32 || allow_tf32);
  plan.threads = block_threads_for(o.omega);
  plan.shared_bytes = arena.shared_limit * kFloat;
  plan.scratch_bytes = arena.device_used * kFloat;
  // A block has the past of one sequence and head in its scratch; it takes several in turn.
  plan.blocks = std::min<int64_t>(items, multiprocessors);
  return plan;
}

OmegaPlan exp_omega_rule_plan(OmegaPass pass, const ExpOmegaOptions& options, Dtype dtype,
                              bool allow_tf32, int64_t items) {
  const Device device = current_device();
  return exp_omega_rule_plan(pass, options, dtype, allow_tf32, items, device.capability,
                             device.multiprocessors, device.shared_bytes);
}

}  // namespace atlas::kernels::cuda
