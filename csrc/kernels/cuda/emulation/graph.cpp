#include "kernels/cuda/emulation/graph.h"

#include <stdexcept>

namespace atlas::emulation {
namespace {

Graph* current = nullptr;  // one for the process, like the settings

}  // namespace

Graph* capturing() { return current; }

void Graph::begin() {
  if (current != nullptr)
    throw std::runtime_error("emulated CUDA: capture: wanted none under way, got a second one");
  *this = {};
  current = this;
}

void Graph::end() {
  if (current == this) current = nullptr;
}

void Graph::replay() const {
  if (current != nullptr)
    throw std::runtime_error("emulated CUDA: replay: wanted no capture under way, got one");
  for (const std::function<void()>& launch : launches_) launch();
}

}  // namespace atlas::emulation
