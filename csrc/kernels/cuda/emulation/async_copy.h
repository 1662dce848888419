#pragma once
// cp.async: each thread's queue of copies. The bytes are moved by code of the issuing thread that
// is compiled with the kernel, so that the sanitizers see whose accesses they are.
#include <cstdint>

#include "kernels/cuda/emulation/settings.h"
#include "kernels/cuda/emulation/site.h"
#include "kernels/cuda/emulation/thread.h"

namespace atlas::emulation {

struct alignas(16) Sixteen {
  uint64_t word[2];
};

// A load and a store of 16 bytes; `from` and `to` may have any type.
inline void copy16(void* to, const void* from) {
  typedef uint64_t __attribute__((may_alias)) word;
  const auto* source = static_cast<const word*>(from);
  auto* target = static_cast<word*>(to);
  const uint64_t low = source[0], high = source[1];
  target[0] = low;
  target[1] = high;
}

// The runtime's part: checks and queues. True: the copy lands at once.
bool queue_copy(void* to, const void* from, Site site);
// The next queued copy of a group that a wait with `pending` groups under way waits for.
bool next_landing(unsigned pending, AsyncCopy& copy);
void async_commit();

inline void land(void* to, const void* from) {
  const Sixteen zeros{};
  copy16(to, from != nullptr ? from : &zeros);
}

// Late, the destination is NaN until the wait, and the source is read there: both may happen on
// hardware at any time in between.
inline void async_copy(void* to, const void* from, Site site) {
  if (queue_copy(to, from, site)) {
    land(to, from);
  } else {
    const Sixteen undefined{{~uint64_t{0}, ~uint64_t{0}}};
    copy16(to, &undefined);
  }
}

inline void async_wait(unsigned pending) {
  AsyncCopy copy;
  while (next_landing(pending, copy)) land(copy.to, copy.from);
}

}  // namespace atlas::emulation
