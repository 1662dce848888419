#pragma once
// A block's threads as fibers of one OS thread: who runs next, barriers, and every error in them.
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/emulation/fiber.h"
#include "kernels/cuda/emulation/settings.h"
#include "kernels/cuda/emulation/shared_memory.h"
#include "kernels/cuda/emulation/site.h"
#include "kernels/cuda/emulation/thread.h"
#include "kernels/cuda/emulation/warp.h"

namespace atlas::emulation {

class Block;

// One launch as the scheduler sees it.
struct Grid {
  const char* kernel;
  Extent grid, block;
  size_t shared_bytes;
  void (*invoke)(const void* arguments);
  const void* arguments;
};

struct CudaThread : Thread {  // a CUDA thread with what the scheduler keeps of it
  Fiber stack;
  Block* owner = nullptr;
  bool exited = false;
  const char* waits = nullptr;  // for what, where
  Site site{};
  Lane lane{};
};

class Block {
 public:
  Block();
  ~Block();

  // Runs one block of the grid to its end; throws what its threads threw.
  void run(const Grid& grid, Extent index, Counters& counters, void* launch_begin,
           void* launch_end);

  // Called by the running thread.
  void barrier(Site site);
  void wait(const char* what, Site site);  // until ready() names this thread
  void yield();
  void ready(unsigned number) { set(number, true); }
  CudaThread& running() { return *running_; }
  CudaThread& thread(unsigned number) { return *threads_[number]; }
  unsigned threads() const { return count_; }
  [[noreturn]] void fail(Site site, const std::string& what) const;

  SharedMemory shared;
  std::vector<Warp> warps;
  Counters* counters = nullptr;
  const Grid* grid = nullptr;
  uint64_t random = 0;

 private:
  void begin(Extent index);
  static void enter();
  void finish_thread();
  void unwind();
  void set(unsigned number, bool is_ready);
  CudaThread* next();
  unsigned random_start();
  CudaThread* scan(unsigned from, bool down);
  void fail_deadlock();
  std::string who_waits() const;
  std::string place(const CudaThread& thread) const;

  Fiber host_;
  std::vector<std::unique_ptr<CudaThread>> threads_;
  std::vector<uint64_t> ready_;
  CudaThread* running_ = nullptr;
  std::exception_ptr error_;
  unsigned count_ = 0, exited_ = 0, at_barrier_ = 0;
  const CudaThread* first_exited_ = nullptr;
  const CudaThread* first_at_barrier_ = nullptr;
  uint64_t generation_ = 0;
  bool warp_runs_ahead_ = false, unwinding_ = false;
  std::unique_ptr<char[]> barrier_sync_;  // two addresses for ThreadSanitizer, in turn
  void* launch_begin_ = nullptr;
  void* launch_end_ = nullptr;
};

// The block whose thread is running on this OS thread; throws outside of kernels.
Block& current_block();

// All blocks of a grid, in the chosen order.
void run_grid(const Grid& grid);

}  // namespace atlas::emulation
