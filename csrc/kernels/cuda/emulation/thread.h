#pragma once
// The running CUDA thread, as kernels see it through the headers.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/cuda/emulation/site.h"

namespace atlas::emulation {

struct Extent {
  unsigned x, y, z;
};

struct AsyncCopy {
  void* to;
  const void* from;  // null: zeros
  unsigned group;
};

struct Thread {
  Extent thread_index, block_index, block_extent, grid_extent;
  std::vector<AsyncCopy> copies;  // issued, not landed
  unsigned committed = 0;         // groups
  unsigned number = 0;            // in the block
};

// Null outside of kernels. A block stays on its OS thread, so this is no lookup by thread.
extern __thread Thread* current_thread __attribute__((tls_model("initial-exec")));

inline unsigned current_lane() { return current_thread->number % 32; }

[[noreturn]] void fail(Site site, const char* what);
void barrier(Site site);
void* shared_array(const void* key, size_t bytes, const char* name, Site site);
void* dynamic_shared();
// Throws unless `address` names `bytes` of one shared array and is a multiple of `bytes`.
void check_shared(const void* address, size_t bytes, const char* what, Site site);

}  // namespace atlas::emulation
