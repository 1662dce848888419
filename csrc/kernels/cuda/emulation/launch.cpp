#include "kernels/cuda/emulation/launch.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "kernels/cuda/emulation/scheduler.h"
#include "kernels/cuda/emulation/trace.h"

namespace atlas::emulation {
namespace {

// The kernel's name in the dynamic symbol table, which is its name in nvcc's PTX.
const char* symbol(const void* function) {
  Dl_info info{};
  const bool found = dladdr(function, &info) != 0 && info.dli_saddr == function;
  return found && info.dli_sname != nullptr ? info.dli_sname : nullptr;
}

void require(bool fits, const char* kernel, const char* what, uint64_t got, uint64_t wanted) {
  if (!fits)
    throw std::runtime_error(std::string("emulated CUDA: launch of ") + kernel + ": " + what +
                             ": wanted 1 to " + std::to_string(wanted) + ", got " +
                             std::to_string(got));
}

void check_limits(const Launch& launch, const char* kernel) {
  const Extent grid = launch.grid, block = launch.block;
  const auto at_most = [&](const char* what, uint64_t got, uint64_t wanted) {
    require(got >= 1 && got <= wanted, kernel, what, got, wanted);
  };
  at_most("grid.x", grid.x, 2147483647);
  at_most("grid.y", grid.y, 65535);
  at_most("grid.z", grid.z, 65535);
  at_most("block.x", block.x, 1024);
  at_most("block.y", block.y, 1024);
  at_most("block.z", block.z, 64);
  at_most("threads per block", uint64_t{block.x} * block.y * block.z, 1024);
  const auto limit = static_cast<uint64_t>(settings().shared_bytes);
  require(launch.shared_bytes <= limit, kernel, "shared memory", launch.shared_bytes, limit);
}

}  // namespace

void run_launch(const Launch& launch) {
  const char* const name = symbol(launch.function);
  const char* const kernel = name != nullptr ? name : "(a kernel without a symbol)";
  if (current_thread != nullptr)
    throw std::runtime_error(std::string("emulated CUDA: ") + kernel + ": launched by a kernel");
  check_limits(launch, kernel);
  const bool traced = tracing();
  if (traced && name == nullptr)
    throw std::runtime_error("emulated CUDA: trace: a kernel without default visibility");
  if (traced) trace_before(launch, kernel);
  run_grid(
      {kernel, launch.grid, launch.block, launch.shared_bytes, launch.invoke, launch.arguments});
  if (traced) trace_after();
}

}  // namespace atlas::emulation
