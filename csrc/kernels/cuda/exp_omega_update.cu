#include <algorithm>
#include <limits>

#include "kernels/cuda/capabilities.h"
#include "kernels/cuda/exp_omega_update.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/omega_plan.h"

namespace atlas::kernels::cuda {
namespace {

constexpr int64_t kFloat = sizeof(float);
constexpr int64_t kStaticBytes = 1 << 10;  // beside the dynamic shared memory

static_assert(sizeof(OmegaWork) + sizeof(OmegaStep) + sizeof(ExpWalk) + sizeof(ExpFinish) <=
                  kStaticBytes,
              "static shared memory");

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Columns that are few get several threads each, so that these are at most the block's.
ExpWalkSizes walk_sizes(const OmegaOptions& o) {
  ExpWalkSizes sizes{};
  sizes.rows = reads_window(o) ? o.window : 0;
  sizes.row = row_width(o);
  sizes.wide = row_sets(o) * sizes.row;
  sizes.kernel_ld = (sizes.rows + kUpdateWindow) / kUpdateWindow * kUpdateWindow + 4;
  const int64_t columns = sizes.wide * (ceil_divide(sizes.rows, kUpdateWindow) + 1);
  sizes.shares = 1;
  while (sizes.shares < kMostShares && 2 * sizes.shares * columns <= kOmegaThreads)
    sizes.shares *= 2;
  sizes.sums = sizes.rows * sizes.wide + static_cast<int>(past_ld(o));
  return sizes;
}

// Of `blocks` blocks, whose buffers `take` lays out.
template <class Take>
OmegaPlan plan_of(int64_t blocks, int multiprocessors, int limit, const Take& take) {
  OmegaArena all{nullptr, nullptr, std::numeric_limits<int64_t>::max()};
  take(all);
  OmegaArena arena{nullptr, nullptr, std::min(all.shared_used, (limit - kStaticBytes) / kFloat)};
  take(arena);
  OmegaPlan plan{};
  plan.threads = kOmegaThreads;
  plan.shared_bytes = arena.shared_limit * kFloat;
  plan.scratch_bytes = arena.device_used * kFloat;
  plan.on_chip = plan.scratch_bytes == 0;
  plan.slices = 1;
  plan.blocks = plan.on_chip ? blocks : std::min<int64_t>(blocks, multiprocessors);
  plan.blocks = std::min<int64_t>(plan.blocks, std::numeric_limits<int>::max());
  return plan;
}

template <auto kKernel>
cudaError_t launch_half(ExpOmegaUpdate args, const OmegaPlan& plan, float* scratch,
                        cudaStream_t stream) {
  args.omega.space = omega_space(plan, scratch);
  return launch<kKernel>(dim3(static_cast<unsigned>(plan.blocks)), dim3(plan.threads),
                         plan.shared_bytes, stream, args);
}

}  // namespace

ExpOmegaUpdatePlan exp_omega_update_plan(const ExpOmegaOptions& options, int64_t capacity,
                                         int64_t items, int capability, int multiprocessors,
                                         int limit) {
  if (limit < 0) limit = shared_kibibytes(capability) << 10;
  const OmegaOptions o = sized(options.omega, 1);
  const ExpWalkSizes sizes = walk_sizes(o);
  OmegaWork work{};
  ExpWalk walk{};
  ExpFinish finish{};
  ExpOmegaUpdatePlan plan{};
  // Blocks share a past where there are few, each at least a block of keys.
  const int64_t wanted = ceil_divide(kWalkBlocks * multiprocessors, std::max<int64_t>(items, 1)),
                most = std::max<int64_t>(ceil_divide(capacity, kKeyBlock), 1);
  plan.parts = static_cast<int>(std::min(wanted, most));
  plan.walk = plan_of(items * plan.parts, multiprocessors, limit,
                      [&](OmegaArena& arena) { take_walk(work, walk, arena, o, sizes); });
  plan.finish = plan_of(items, multiprocessors, limit, [&](OmegaArena& arena) {
    take_finish(work, finish, arena, o, plan.parts);
  });
  plan.partial_floats = items * plan.parts * partial_floats(sizes);
  plan.scratch_floats = std::max(plan.walk.blocks * plan.walk.scratch_bytes,
                                 plan.finish.blocks * plan.finish.scratch_bytes) /
                        kFloat;
  return plan;
}

ExpOmegaUpdatePlan exp_omega_update_plan(const ExpOmegaOptions& options, int64_t capacity,
                                         int64_t items) {
  const Device device = current_device();
  return exp_omega_update_plan(options, capacity, items, device.capability, device.multiprocessors,
                               device.shared_bytes);
}

cudaError_t exp_omega_rule_update(const ExpOmegaUpdate& given, const ExpOmegaUpdatePlan& plan,
                                  float* scratch, cudaStream_t stream) {
  ExpOmegaUpdate args = given;
  args.omega.options = sized(args.omega.options, 1);
  args.walk = walk_sizes(args.omega.options);
  args.parts = plan.parts;
  args.partial = scratch;
  args.partial_ld = partial_floats(args.walk);
  float* const space = scratch + plan.partial_floats;
  const cudaError_t status = launch_half<exp_omega_walk_kernel>(args, plan.walk, space, stream);
  return status == cudaSuccess
             ? launch_half<exp_omega_finish_kernel>(args, plan.finish, space, stream)
             : status;
}

}  // namespace atlas::kernels::cuda
