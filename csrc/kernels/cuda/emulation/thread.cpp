#include "kernels/cuda/emulation/thread.h"

#include <stdexcept>
#include <string>

#include "kernels/cuda/capabilities.h"
#include "kernels/cuda/emulation/sanitizer.h"
#include "kernels/cuda/emulation/scheduler.h"

namespace atlas::emulation {

__thread Thread* current_thread __attribute__((tls_model("initial-exec"))) = nullptr;

Block& current_block() {
  if (current_thread == nullptr)
    throw std::runtime_error("emulated CUDA: device code was called outside of a kernel");
  return *static_cast<CudaThread*>(current_thread)->owner;
}

void fail(Site site, const char* what) {
  const Unrecorded unrecorded;
  current_block().fail(site, what);
}

void barrier(Site site) {
  const Unrecorded unrecorded;
  current_block().barrier(site);
}

void* shared_array(const void* key, size_t bytes, const char* name, Site site) {
  const Unrecorded unrecorded;
  Block& block = current_block();
  void* const array = block.shared.array(key, bytes, name);
  constexpr size_t kStaticLimit = 48 << 10;
  // Beyond it the launcher has opted in.
  const bool opted_in = block.grid->shared_bytes > kernels::cuda::kOptInBeyond;
  const size_t limit = opted_in ? static_cast<size_t>(settings().shared_bytes) : kStaticLimit;
  if (block.shared.static_bytes() > kStaticLimit)
    block.fail(site, std::string(name) + ": more than 48 KiB of static shared memory");
  if (block.shared.static_bytes() + block.grid->shared_bytes > limit)
    block.fail(site, std::string(name) + ": more shared memory than the launch's " +
                         std::to_string(limit) + " bytes, static and dynamic together");
  return array;
}

void* dynamic_shared() { return current_block().shared.dynamic(); }

void check_shared(const void* address, size_t bytes, const char* what, Site site) {
  const Unrecorded unrecorded;
  const Block& block = current_block();
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0)
    block.fail(site, std::string(what) + ": wanted an address that is a multiple of " +
                         std::to_string(bytes));
  if (!block.shared.holds(address, bytes))
    block.fail(site, std::string(what) + ": the address is in no shared array");
}

}  // namespace atlas::emulation
