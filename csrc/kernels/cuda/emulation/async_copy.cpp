#include "kernels/cuda/emulation/async_copy.h"

#include "kernels/cuda/emulation/sanitizer.h"
#include "kernels/cuda/emulation/scheduler.h"

namespace atlas::emulation {

bool queue_copy(void* to, const void* from, Site site) {
  const Unrecorded unrecorded;
  Block& block = current_block();
  check_shared(to, 16, "cp.async", site);
  if (reinterpret_cast<uintptr_t>(from) % 16 != 0)
    block.fail(site, "cp.async: wanted a source address that is a multiple of 16");
  ++block.counters->async_copies;
  const CopyMode mode = settings().copies;
  if (mode == CopyMode::early || settings().capability < 80 ||
      (mode == CopyMode::random && draw(block.random) % 2 == 0))
    return true;
  Thread& thread = block.running();
  thread.copies.push_back({to, from, thread.committed});
  return false;
}

bool next_landing(unsigned pending, AsyncCopy& copy) {
  const Unrecorded unrecorded;
  Thread& thread = current_block().running();
  if (thread.copies.empty() || thread.copies.front().group + pending >= thread.committed)
    return false;
  copy = thread.copies.front();
  thread.copies.erase(thread.copies.begin());
  return true;
}

void async_commit() {
  const Unrecorded unrecorded;
  ++current_block().running().committed;
}

}  // namespace atlas::emulation
