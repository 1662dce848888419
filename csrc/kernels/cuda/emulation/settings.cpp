#include "kernels/cuda/emulation/settings.h"

#include <mutex>
#include <stdexcept>

#include "kernels/cuda/capabilities.h"

namespace atlas::emulation {
namespace {

std::mutex mutex;
Counters total{};

[[noreturn]] void refuse(const char* name, const char* wanted, const std::string& got) {
  throw std::runtime_error(std::string("emulated CUDA: ") + name + ": wanted " + wanted + ", got " +
                           got);
}

}  // namespace

Settings& settings() {
  static Settings all;
  return all;
}

Counters counters() {
  const std::lock_guard<std::mutex> lock(mutex);
  return total;
}

void add(const Counters& more) {
  const std::lock_guard<std::mutex> lock(mutex);
  total.launches += more.launches;
  total.blocks += more.blocks;
  total.barriers += more.barriers;
  total.warp_operations += more.warp_operations;
  total.async_copies += more.async_copies;
  total.ldmatrix += more.ldmatrix;
  total.mma += more.mma;
}

void reset_counters() {
  const std::lock_guard<std::mutex> lock(mutex);
  total = {};
}

void set_order(const std::string& order, uint64_t seed) {
  Settings& all = settings();
  if (order == "forward") {
    all.order = Order::forward;
  } else if (order == "reverse") {
    all.order = Order::reverse;
  } else if (order == "random") {
    all.order = Order::random;
  } else {
    refuse("order", "forward, reverse or random", order);
  }
  all.random = seed;
}

void set_copies(const std::string& mode) {
  Settings& all = settings();
  if (mode == "early") {
    all.copies = CopyMode::early;
  } else if (mode == "late") {
    all.copies = CopyMode::late;
  } else if (mode == "random") {
    all.copies = CopyMode::random;
  } else {
    refuse("cp_async", "early, late or random", mode);
  }
}

// A block may have `shared_kib` KiB of shared memory; 0: what the capability has.
void set_device(int capability, int multiprocessors, int shared_kib) {
  const int kibibytes = kernels::cuda::shared_kibibytes(capability);
  if (kibibytes == 0)
    refuse("capability", "75, 80, 86, 87, 89, 90, 100 or 120", std::to_string(capability));
  if (multiprocessors < 1) refuse("multiprocessors", "at least 1", std::to_string(multiprocessors));
  if (shared_kib < 0 || shared_kib > kibibytes)
    refuse("shared_kib", ("0 to " + std::to_string(kibibytes)).c_str(), std::to_string(shared_kib));
  settings().capability = capability;
  settings().shared_bytes = (shared_kib > 0 ? shared_kib : kibibytes) << 10;
  settings().multiprocessors = multiprocessors;
}

}  // namespace atlas::emulation
