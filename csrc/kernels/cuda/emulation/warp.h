#pragma once
// Operations that the lanes of a warp execute together.
#include <cstdint>
#include <deque>

#include "kernels/cuda/emulation/site.h"

namespace atlas::emulation {

constexpr int kLanes = 32;

// What a waiting lane brought, and where its result goes: both on its own stack.
struct Lane {
  const void* in;
  void* out;
};

// Lanes of one mask that meet; kept over the block, since masks come back.
struct Rendezvous {
  unsigned mask, arrived;
  const char* what;
  Site site;
  uint64_t generation;
  uint64_t sync[2];  // addresses for ThreadSanitizer, in turn
};

struct Warp {
  std::deque<Rendezvous> meetings;  // they keep their addresses
};

// Throws if lanes wait for the running thread, which exits.
class Block;
void check_exit(Block& block);

// Interface for prim.h. `mask` names the lanes that take part, the caller among them.
void warp_sync(unsigned mask, Site site);
uint64_t warp_shuffle(uint64_t value, unsigned source, unsigned mask, Site site);
unsigned warp_ballot(bool predicate, unsigned mask, Site site);
// `row`: the 8 elements that this lane read from its row.
void warp_ldmatrix(uint32_t (&out)[4], const uint16_t (&row)[8], bool transposed, Site site);

enum class Operand { bf16, f16, tf32 };
void warp_mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Operand type,
              Site site);

}  // namespace atlas::emulation
