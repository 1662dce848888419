#pragma once
// Launches that are recorded and run later, as a captured CUDA graph runs them: with the pointers
// and numbers that they had, on what the memory holds by then.
#include <cstddef>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace atlas::emulation {

class Graph {
 public:
  ~Graph() { end(); }

  void begin();  // records the launches of this OS thread until end()
  void end();
  void replay() const;
  size_t size() const { return launches_.size(); }

  void add(std::function<void()> launch) { launches_.push_back(std::move(launch)); }
  void hold(std::shared_ptr<const void> memory) { held_.push_back(std::move(memory)); }

 private:
  std::vector<std::function<void()>> launches_;
  std::vector<std::shared_ptr<const void>> held_;  // memory that the launches point to
};

// The graph that records this OS thread's launches, or null.
Graph* capturing();

}  // namespace atlas::emulation
