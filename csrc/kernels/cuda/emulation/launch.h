#pragma once
// The emulated twin of launch.cuh: same functions; a launch runs to its end before it returns (or,
// while a graph is captured, when that is replayed), and throws where hardware would refuse it or
// misbehave.
#include <tuple>
#include <utility>
#include <vector>

#include "kernels/cuda/emulation/graph.h"
#include "kernels/cuda/emulation/settings.h"
#include "kernels/cuda/platform.cuh"

namespace atlas::emulation {

struct Parameter {
  const void* bytes;
  size_t size;
};

struct Launch {
  const void* function;
  Extent grid, block;
  size_t shared_bytes;
  std::vector<Parameter> parameters;
  void (*invoke)(const void* arguments);
  const void* arguments;
};

void run_launch(const Launch& launch);

template <auto kKernel, class Arguments, size_t... kIndices>
void launch_with(dim3 grid, dim3 block, size_t shared_bytes, const Arguments& arguments,
                 std::index_sequence<kIndices...>) {
  run_launch({reinterpret_cast<const void*>(kKernel),
              {grid.x, grid.y, grid.z},
              {block.x, block.y, block.z},
              shared_bytes,
              {{&std::get<kIndices>(arguments), sizeof(std::get<kIndices>(arguments))}...},
              [](const void* values) {
                kKernel(std::get<kIndices>(*static_cast<const Arguments*>(values))...);
              },
              &arguments});
}

}  // namespace atlas::emulation

namespace atlas::kernels::cuda {

template <auto kKernel, class... Parameters, class... Arguments>
cudaError_t launch_typed(void (*)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
                         cudaStream_t, Arguments... arguments) {
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  const auto run = [=, values = std::tuple<Parameters...>(static_cast<Parameters>(arguments)...)] {
    emulation::launch_with<kKernel>(grid, block, shared_bytes, values,
                                    std::index_sequence_for<Parameters...>());
  };
  if (emulation::Graph* const graph = emulation::capturing())
    graph->add(run);
  else
    run();
  return cudaSuccess;
}

template <auto kKernel, class... Arguments>
cudaError_t launch(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                   Arguments... arguments) {
  return launch_typed<kKernel>(kKernel, grid, block, shared_bytes, stream, arguments...);
}

template <auto kKernel>
cudaError_t prefer_shared_memory() {
  return cudaSuccess;
}

// What a launcher needs to know of the current device to choose a kernel.
struct Device {
  int capability;    // 10 * major + minor
  int shared_bytes;  // most that a block may opt in to
  int multiprocessors;
};

inline Device current_device() {
  const emulation::Settings& all = emulation::settings();
  return {all.capability, all.shared_bytes, all.multiprocessors};
}

}  // namespace atlas::kernels::cuda
