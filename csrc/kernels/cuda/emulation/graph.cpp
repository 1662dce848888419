#include "kernels/cuda/emulation/graph.h"

#include <stdexcept>

#include "kernels/cuda/emulation/trace.h"

namespace atlas::emulation {
namespace {

thread_local Graph* current = nullptr;

}  // namespace

Graph* capturing() { return current; }

void Graph::begin() {
  if (current != nullptr)
    throw std::runtime_error("emulated CUDA: capture: wanted none under way, got a second one");
  launches_.clear();
  held_.clear();
  current = this;
}

void Graph::end() {
  if (current == this) current = nullptr;
}

void Graph::replay() const {
  if (current != nullptr)
    throw std::runtime_error("emulated CUDA: replay: wanted no capture under way, got one");
  if (tracing())  // which knows buffers only within the operator that takes them
    throw std::runtime_error("emulated CUDA: replay: wanted no trace under way, got one");
  for (const std::function<void()>& launch : launches_) launch();
}

}  // namespace atlas::emulation
