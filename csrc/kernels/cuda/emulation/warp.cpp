#include "kernels/cuda/emulation/warp.h"

#include <cstdio>
#include <cstring>
#include <string>

#include "kernels/cuda/emulation/numeric.h"
#include "kernels/cuda/emulation/sanitizer.h"
#include "kernels/cuda/emulation/scheduler.h"

namespace atlas::emulation {
namespace {

constexpr unsigned kAll = 0xffffffffu;

// Computes the results of all lanes of `mask`; `first` is the number of lane 0's thread.
using Combine = void (*)(Block& block, unsigned first, unsigned mask);

std::string hex(unsigned mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

std::string waiting(const Rendezvous& meeting) {
  return "lanes " + hex(meeting.arrived) + " wait at " + meeting.what + " with mask " +
         hex(meeting.mask) + ", " + meeting.site.file + ":" + std::to_string(meeting.site.line);
}

Rendezvous& find(Warp& warp, unsigned mask) {
  for (Rendezvous& meeting : warp.meetings)
    if (meeting.mask == mask) return meeting;
  warp.meetings.push_back({mask, 0, nullptr, {}, 0, {}});
  return warp.meetings.back();
}

// That this lane may take part, and that all others of its mask still can.
void check(Block& block, Warp& warp, unsigned first, unsigned lane, unsigned mask, Site site,
           const char* what) {
  const auto refuse = [&](const std::string& why) {
    block.fail(site, what + (" with mask " + hex(mask)) + ": " + why);
  };
  const unsigned there = block.threads() - first;
  if (there < kLanes && (mask >> there) != 0)
    refuse("it names lanes beyond the block's last thread");
  for (const Rendezvous& other : warp.meetings)
    if (other.arrived != 0 && other.mask != mask && (other.mask >> lane & 1) != 0)
      refuse("another mask is awaited: " + waiting(other));
  for (unsigned i = 0; i < kLanes; ++i)
    if ((mask >> i & 1) != 0 && block.thread(first + i).exited)
      refuse("lane " + std::to_string(i) + " has exited");
}

// Waits for all lanes of `mask` at one site; the last one to come runs `combine` for all. Memory is
// put in order by __syncwarp alone, as in CUDA.
void meet(const char* what, unsigned mask, Site site, Lane lane, Combine combine) {
  const Unrecorded unrecorded;
  Block& block = current_block();
  CudaThread& self = block.running();
  const unsigned number = self.number % kLanes, first = self.number - number;
  Warp& warp = block.warps[self.number / kLanes];
  if ((mask >> number & 1) == 0)
    block.fail(site, what + (" with mask " + hex(mask)) + ": it does not name this lane");
  Rendezvous& meeting = find(warp, mask);
  if (meeting.arrived == 0 || warp.meetings.size() > 1)
    check(block, warp, first, number, mask, site, what);
  if (meeting.arrived == 0) {
    meeting.what = what;
    meeting.site = site;
  } else if (meeting.site != site || meeting.what != what) {
    block.fail(site, std::string("divergent ") + what + ": " + waiting(meeting));
  }
  self.lane = lane;
  meeting.arrived |= 1u << number;
  uint64_t* const sync = &meeting.sync[meeting.generation % 2];
  if (combine == nullptr) release(sync);
  if (meeting.arrived != mask) {
    block.wait(what, site);
  } else {
    if (combine != nullptr) combine(block, first, mask);
    meeting.arrived = 0;
    ++meeting.generation;
    ++block.counters->warp_operations;
    for (unsigned i = 0; i < kLanes; ++i)
      if ((mask >> i & 1) != 0) block.ready(first + i);
    block.yield();
  }
  if (combine == nullptr) acquire(sync);
}

template <class In, class Out>
struct Lanes {
  Block& block;
  unsigned first;
  const In& in(unsigned lane) const {
    return *static_cast<const In*>(block.thread(first + lane).lane.in);
  }
  Out& out(unsigned lane) const { return *static_cast<Out*>(block.thread(first + lane).lane.out); }
};

struct Shuffled {
  uint64_t value;
  unsigned source;
};

void combine_shuffle(Block& block, unsigned first, unsigned mask) {
  const Lanes<Shuffled, uint64_t> lanes{block, first};
  for (unsigned i = 0; i < kLanes; ++i)
    if ((mask >> i & 1) != 0) lanes.out(i) = lanes.in(lanes.in(i).source).value;
}

void combine_ballot(Block& block, unsigned first, unsigned mask) {
  const Lanes<bool, unsigned> lanes{block, first};
  unsigned votes = 0;
  for (unsigned i = 0; i < kLanes; ++i)
    if ((mask >> i & 1) != 0 && lanes.in(i)) votes |= 1u << i;
  for (unsigned i = 0; i < kLanes; ++i)
    if ((mask >> i & 1) != 0) lanes.out(i) = votes;
}

using Row = uint16_t[8];
using Words = uint32_t[4];

template <bool kTransposed>
void combine_ldmatrix(Block& block, unsigned first, unsigned) {
  const Lanes<Row, Words> lanes{block, first};
  const auto element = [&](unsigned matrix, unsigned row, unsigned column) {
    return static_cast<uint32_t>(lanes.in(matrix * 8 + row)[column]);
  };
  for (unsigned lane = 0; lane < kLanes; ++lane)
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned g = lane / 4, c = lane % 4 * 2;
      const uint32_t low = kTransposed ? element(i, c, g) : element(i, g, c);
      const uint32_t high = kTransposed ? element(i, c + 1, g) : element(i, g, c + 1);
      lanes.out(lane)[i] = low | high << 16;
    }
  ++block.counters->ldmatrix;
}

struct Fragments {
  float (*c)[4];
  const uint32_t (*a)[4];
  const uint32_t (*b)[2];
};

// One 16 x kDepth x 8 product. The products are exact in double, their sum is rounded to float once
// (hardware truncates in ways of its own); the half depth of sm_75 rounds twice.
template <int kDepth>
struct Product {
  double a[16][kDepth], b[kDepth][8];

  void add_to(const Lanes<Fragments, char>& lanes, int k_begin, int k_end) const {
    double sums[16][8] = {};
    for (int m = 0; m < 16; ++m)
      for (int k = k_begin; k < k_end; ++k)
        for (int n = 0; n < 8; ++n) sums[m][n] += a[m][k] * b[k][n];
    for (unsigned lane = 0; lane < kLanes; ++lane) {
      float (&c)[4] = *lanes.in(lane).c;
      for (int i = 0; i < 4; ++i)
        c[i] = static_cast<float>(c[i] + sums[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2]);
    }
  }
};

template <Operand kType>
void combine_mma16(Block& block, unsigned first, unsigned) {
  const Lanes<Fragments, char> lanes{block, first};
  const auto wide = [](uint32_t bits) -> double {
    const auto half = static_cast<uint16_t>(bits);
    return kType == Operand::bf16 ? bf16_to_float(half) : f16_to_float(half);
  };
  Product<16> product;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const Fragments& own = lanes.in(lane);
    const unsigned g = lane / 4, c = lane % 4 * 2;
    for (unsigned i = 0; i < 4; ++i)
      for (unsigned half = 0; half < 2; ++half)
        product.a[g + i % 2 * 8][c + i / 2 * 8 + half] = wide((*own.a)[i] >> (16 * half));
    for (unsigned i = 0; i < 2; ++i)
      for (unsigned half = 0; half < 2; ++half)
        product.b[c + i * 8 + half][g] = wide((*own.b)[i] >> (16 * half));
  }
  if (settings().capability >= 80) {
    product.add_to(lanes, 0, 16);
  } else {
    product.add_to(lanes, 0, 8);
    product.add_to(lanes, 8, 16);
  }
  ++block.counters->mma;
}

void combine_mma_tf32(Block& block, unsigned first, unsigned) {
  const Lanes<Fragments, char> lanes{block, first};
  constexpr uint32_t kSeen = 0xffffe000u;  // the hardware ignores the low 13 bits
  Product<8> product;
  for (unsigned lane = 0; lane < kLanes; ++lane) {
    const Fragments& own = lanes.in(lane);
    const unsigned g = lane / 4, c = lane % 4;
    for (unsigned i = 0; i < 4; ++i)
      product.a[g + i % 2 * 8][c + i / 2 * 4] = bits_as_float((*own.a)[i] & kSeen);
    for (unsigned i = 0; i < 2; ++i) product.b[c + i * 4][g] = bits_as_float((*own.b)[i] & kSeen);
  }
  product.add_to(lanes, 0, 8);
  ++block.counters->mma;
}

}  // namespace

void check_exit(Block& block) {
  const CudaThread& self = block.running();
  for (const Rendezvous& meeting : block.warps[self.number / kLanes].meetings)
    if (meeting.arrived != 0 && (meeting.mask >> self.number % kLanes & 1) != 0)
      block.fail(meeting.site, "this thread exits, while " + waiting(meeting));
}

void warp_sync(unsigned mask, Site site) { meet("__syncwarp", mask, site, {}, nullptr); }

uint64_t warp_shuffle(uint64_t value, unsigned source, unsigned mask, Site site) {
  if (source >= kLanes || (mask >> source & 1) == 0)
    fail(site, "shuffle: the source lane is not in the mask");
  const Shuffled in{value, source};
  uint64_t out = 0;
  meet("shuffle", mask, site, {&in, &out}, combine_shuffle);
  return out;
}

unsigned warp_ballot(bool predicate, unsigned mask, Site site) {
  unsigned out = 0;
  meet("ballot", mask, site, {&predicate, &out}, combine_ballot);
  return out;
}

void warp_ldmatrix(uint32_t (&out)[4], const uint16_t (&row)[8], bool transposed, Site site) {
  meet("ldmatrix", kAll, site, {&row, &out},
       transposed ? combine_ldmatrix<true> : combine_ldmatrix<false>);
}

void warp_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Operand type,
              Site site) {
  if (settings().capability < 80 && type != Operand::f16)
    fail(site, "mma: below sm_80 there is none with bf16 or tf32 operands");
  const Fragments in{&c, &a, &b};
  meet("mma", kAll, site, {&in, nullptr},
       type == Operand::bf16  ? combine_mma16<Operand::bf16>
       : type == Operand::f16 ? combine_mma16<Operand::f16>
                              : combine_mma_tf32);
}

}  // namespace atlas::emulation
