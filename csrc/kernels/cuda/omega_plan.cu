#include <algorithm>
#include <limits>

#include "kernels/cuda/capabilities.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/omega_grads.cuh"
#include "kernels/cuda/omega_plan.h"
#include "kernels/cuda/omega_team.cuh"

namespace atlas::kernels::cuda {
namespace {

// Beside the dynamic shared memory: OmegaWork, OmegaGrads, TeamWork.
constexpr int64_t kStaticBytes = 1 << 10;
// What a multiprocessor keeps of its shared memory for each block (nothing on sm_75).
constexpr int64_t kReservedBytes = 1 << 10;

static_assert(sizeof(OmegaWork) + sizeof(OmegaGrads) + sizeof(TeamWork) <= kStaticBytes,
              "static shared memory");

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Floats of dynamic shared memory for each of `residents` blocks of a multiprocessor, of which a
// single one may have `limit` bytes.
int64_t most_floats(int64_t limit, int residents) {
  const int64_t each = (limit + kReservedBytes) / residents - kReservedBytes;
  return (each - kStaticBytes) / static_cast<int64_t>(sizeof(float));
}

// So many warps as the largest product of a chunk has tiles, or as an update has groups of rows, in
// powers of two; residents share those of one block.
int block_threads_for(OmegaPass pass, const OmegaOptions& o, int residents = 1) {
  const OmegaSizes& sz = o.sizes;
  const auto tiles = [](int64_t rows, int64_t columns) {
    return ceil_divide(rows, kTileRows) * ceil_divide(columns, kTileColumns);
  };
  int64_t most = tiles(o.chunk, sz.rows);
  for (int l = 0; l < o.matrices; ++l) {
    const OmegaMatrix& m = sz.matrix[l];
    most = std::max(most, std::max(tiles(m.in, m.out), tiles(sz.rows, m.out)));
    if (pass == OmegaPass::update) most = std::max(most, ceil_divide(m.out, kUpdateRows));
  }
  int warps = 2;
  while (warps < kOmegaWarps / residents && warps < most) warps *= 2;
  return warps * kWarp;
}

// Lays the pass's buffers out; true as OmegaPlan::on_chip.
bool take(OmegaPass pass, OmegaArena& arena, const OmegaOptions& o, int threads) {
  OmegaWork work{};
  OmegaGrads grads{};
  if (pass == OmegaPass::forward) return take_forward(work, arena, o);
  if (pass == OmegaPass::update) return take_update(work, arena, o);
  return take_backward(work, grads, arena, o, true, threads);
}

// Whether what is used most (OmegaPlan::on_chip) stays in shared memory of `most` floats.
bool core_fits(OmegaPass pass, const OmegaOptions& o, int64_t most, int residents = 1) {
  OmegaArena arena{nullptr, nullptr, most};
  return take(pass, arena, o, block_threads_for(pass, o, residents));
}

// Floats that the backward's summands take for each token and head (OmegaBackward), if there are
// several.
int64_t summand_floats(const OmegaOptions& o, int slices, int chunks) {
  const auto floats = [](int64_t count, int64_t width) { return count > 1 ? count * width : 0; };
  return floats(slices, o.key + o.window + 3) + floats(slices * chunks, o.key) +
         floats(chunks, o.value);
}

// More memory than that is not worth the time.
constexpr int64_t kMostSummandFloats = (int64_t{1} << 30) / sizeof(float);

// Blocks share a linear memory's outputs, a tile's columns each at least: its columns never meet.
// They do where a few slices of a state fit in shared memory and the whole does not (with a
// polynomial map its features would be made for each), and where (sequence, head) pairs leave
// multiprocessors idle. Each block makes the scores of queries and keys.
int slices_for(OmegaPass pass, const OmegaOptions& o, int64_t most, int64_t items,
               int multiprocessors, int64_t rows) {
  constexpr int kToFit = 4;
  if (pass == OmegaPass::update || o.matrices > 1 || o.schedule.steps > 0) return 1;
  const auto divides = [&](int slices) {
    return o.value % slices == 0 && o.value / slices >= kTileColumns;
  };
  int slices = 1;
  while (o.degree == 0 && slices < kToFit && divides(2 * slices) &&
         !core_fits(pass, sized(o, slices), most))
    slices *= 2;
  if (!core_fits(pass, sized(o, slices), most)) slices = 1;
  while (2 * slices * items <= multiprocessors && divides(2 * slices) &&
         rows * summand_floats(o, 2 * slices, 1) <= kMostSummandFloats)
    slices *= 2;
  return slices;
}

// Blocks that share the chunks of one of `items`, slices of heads, in the backward. Gradients of
// states need about two fifths of all products, chunk by chunk; the others, some of them made
// twice, need not wait, so it pays where multiprocessors are idle. A window beyond a chunk would
// meet more than two of them.
int parts_for(OmegaPass pass, const OmegaOptions& o, int slices, int64_t items, int multiprocessors,
              int64_t chunks, int64_t rows) {
  if (pass != OmegaPass::backward || o.matrices > 1 || o.schedule.steps > 0) return 1;
  if (multiprocessors < 2 * items || o.chunk_size < o.window - 1 ||
      rows * summand_floats(o, slices, 2) > kMostSummandFloats)
    return 1;
  return static_cast<int>(std::clamp<int64_t>(chunks, 1, multiprocessors / items));
}

// Two heads of a deep memory share a multiprocessor, each a block of half its warps and shared
// memory, where what both use most fits and half as many rounds are left; not of packed sequences,
// which a single long one may keep waiting. Outputs no wider than a tile leave several warps of a
// single block without work.
int residents_for(OmegaPass pass, const OmegaOptions& o, int64_t limit, int64_t items,
                  int multiprocessors, int64_t packed) {
  constexpr int kResidents = 2;
  if (pass == OmegaPass::update || o.matrices == 1 || o.value > kTileColumns || packed > 1 ||
      ceil_divide(items, multiprocessors) % kResidents != 0)
    return 1;
  const bool fills = block_threads_for(pass, sized(o, 1)) == kOmegaThreads;
  return fills && core_fits(pass, sized(o, 1, kResidents), most_floats(limit, kResidents),
                            kResidents)
             ? kResidents
             : 1;
}

// Teams for a deep memory that does not fit on chip, where (sequence, head) pairs leave
// multiprocessors idle: a block has a tile's rows and columns at least, more where not all blocks
// of a launch would work at the same time; four always do, of a gated memory the matrices and the
// rows. There is a launch for every chunk that a packed sequence may have, also where many share
// the tokens and none has so many.
OmegaTeam team_for(OmegaPass pass, const OmegaOptions& o, int64_t items, int multiprocessors,
                   int64_t chunks, int64_t packed, int threads) {
  constexpr int64_t kMostPacked = 8;
  OmegaTeam team{};
  if (o.matrices == 1 || o.schedule.steps > 0 || 4 * items > multiprocessors ||
      packed > kMostPacked)
    return team;
  const bool backward = pass == OmegaPass::backward;
  team = {kTileRows, kTileColumns, o.sizes.tile, chunks, 0, 0};
  while (items * most_team_ranks(backward, false, o, team) > multiprocessors) {
    const bool cut_rows = row_slabs(o, team) > 1, cut_parts = part_count(o, team) > o.matrices;
    if (cut_parts && (!cut_rows || part_count(o, team) >= row_slabs(o, team))) {
      team.columns += kTileColumns;
      team.features += o.sizes.tile;
    } else {
      team.rows += kTileRows;
    }
  }
  team.blocks = items * most_team_ranks(backward, true, o, team);
  OmegaWork work{};
  OmegaGrads grads{};
  TeamWork team_work{};
  OmegaArena arena{nullptr, nullptr, 0};
  if (backward)
    take_team(work, grads, team_work, arena, o, team, true, threads);
  else
    take_team(work, team_work, arena, o, 0);
  team.floats = arena.device_used;
  return team;
}

}  // namespace

OmegaPlan omega_rule_plan(OmegaPass pass, const OmegaOptions& options, Dtype dtype, bool allow_tf32,
                          int64_t items, int capability, int multiprocessors, int limit,
                          int64_t chunks, int64_t packed, int64_t rows) {
  if (limit < 0) limit = shared_kibibytes(capability) << 10;
  constexpr int64_t kFloat = sizeof(float);
  OmegaPlan plan{};
  plan.slices = slices_for(pass, options, most_floats(limit, 1), items, multiprocessors, rows);
  items *= plan.slices;
  plan.parts = parts_for(pass, options, plan.slices, items, multiprocessors, chunks, rows);
  items *= plan.parts;
  plan.residents = residents_for(pass, options, limit, items, multiprocessors, packed);
  const OmegaOptions o = sized(options, plan.slices, plan.residents);
  const int64_t most = most_floats(limit, plan.residents);
  plan.threads = block_threads_for(pass, o, plan.residents);
  OmegaArena all{nullptr, nullptr, std::numeric_limits<int64_t>::max()};
  take(pass, all, o, plan.threads);
  OmegaArena arena{nullptr, nullptr, std::min(all.shared_used, most)};
  plan.on_chip = take(pass, arena, o, plan.threads);
  plan.tensor_cores = capability >= 80 && (dtype != Dtype::f32 || allow_tf32);
  if (!plan.on_chip && pass != OmegaPass::update)
    plan.team = team_for(pass, o, items, multiprocessors, chunks, packed, plan.threads);
  if (plan.team.rows > 0) {
    OmegaWork own{};
    OmegaArena wanted{nullptr, nullptr, std::numeric_limits<int64_t>::max()};
    take_own(own, wanted, o);
    arena = {nullptr, nullptr, std::min(wanted.shared_used, most)};
    take_own(own, arena, o);
  }
  plan.shared_bytes = arena.shared_limit * kFloat;
  plan.scratch_bytes = arena.device_used * kFloat;
  // Blocks with scratch fill a multiprocessor; they then take several items in turn.
  plan.blocks = plan.scratch_bytes > 0 && plan.team.rows == 0
                    ? std::min<int64_t>(items, plan.residents * int64_t{multiprocessors})
                    : items;
  plan.blocks = std::min<int64_t>(plan.blocks, std::numeric_limits<int>::max());
  return plan;
}

OmegaPlan omega_rule_plan(OmegaPass pass, const OmegaOptions& options, Dtype dtype, bool allow_tf32,
                          int64_t items, int64_t chunks, int64_t packed, int64_t rows) {
  const Device device = current_device();
  return omega_rule_plan(pass, options, dtype, allow_tf32, items, device.capability,
                         device.multiprocessors, device.shared_bytes, chunks, packed, rows);
}

}  // namespace atlas::kernels::cuda
