#include "kernels/cuda/emulation/scheduler.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <stdexcept>

#include "kernels/cuda/emulation/sanitizer.h"

namespace atlas::emulation {

namespace {

std::string text(Site site) {
  return site.line == 0 ? site.file : std::string(site.file) + ":" + std::to_string(site.line);
}

std::string text(Extent index) {
  return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
         std::to_string(index.z) + ")";
}

std::string demangled(const char* name) {
  int status = 0;
  char* plain = abi::__cxa_demangle(name, nullptr, nullptr, &status);
  const std::string result = status == 0 ? plain : name;
  std::free(plain);
  return result;
}

struct Unwind {};  // thrown in threads that must end because another one failed

Extent index_of(uint64_t number, Extent extent) {
  return {static_cast<unsigned>(number % extent.x),
          static_cast<unsigned>(number / extent.x % extent.y),
          static_cast<unsigned>(number / extent.x / extent.y)};
}

}  // namespace

Block::Block() { host_.adopt_thread(); }

Block::~Block() {
  const Unrecorded unrecorded;
  threads_.clear();
}

void Block::set(unsigned number, bool is_ready) {
  const uint64_t bit = uint64_t{1} << (number % 64);
  is_ready ? ready_[number / 64] |= bit : ready_[number / 64] &= ~bit;
}

void Block::begin(Extent index) {
  const Extent size = grid->block;
  count_ = size.x * size.y * size.z;
  exited_ = at_barrier_ = 0;
  generation_ = 0;
  first_exited_ = first_at_barrier_ = nullptr;
  error_ = nullptr;
  warp_runs_ahead_ = draw(random) % 2 != 0;
  warps.clear();
  warps.resize((count_ + kLanes - 1) / kLanes);
  ready_.assign((count_ + 63) / 64, 0);
  while (threads_.size() < count_) threads_.push_back(std::make_unique<CudaThread>());
  for (unsigned i = 0; i < count_; ++i) {
    CudaThread& thread = *threads_[i];
    static_cast<Thread&>(thread) = {index_of(i, size), index, size, grid->grid, {}, 0, i};
    thread.owner = this;
    thread.exited = false;
    thread.waits = nullptr;
    thread.stack.start(&Block::enter, i);
    set(i, true);
  }
  shared.begin(grid->shared_bytes);
  barrier_sync_ = std::make_unique<char[]>(16);  // fresh: no other block's history
}

void Block::run(const Grid& launched, Extent index, Counters& count, void* launch_begin,
                void* launch_end) {
  grid = &launched;
  counters = &count;
  launch_begin_ = launch_begin;
  launch_end_ = launch_end;
  const Unrecorded unrecorded;
  begin(index);
  Thread* const outer = current_thread;
  current_thread = running_ = next();
  host_.switch_to(running_->stack);
  if (error_) unwind();
  for (unsigned i = 0; i < count_; ++i) threads_[i]->stack.finish();
  if (!error_) {
    const std::string damage = shared.damage();
    if (!damage.empty()) {
      try {
        fail({"the block's end", 0}, damage);
      } catch (...) {
        error_ = std::current_exception();
      }
    }
  }
  current_thread = outer;
  running_ = nullptr;
  if (error_) std::rethrow_exception(error_);
}

// Lets every thread leave its kernel by an exception, so that nothing of it stays behind.
void Block::unwind() {
  unwinding_ = true;
  for (unsigned i = 0; i < count_; ++i) {
    if (threads_[i]->exited) continue;
    current_thread = running_ = threads_[i].get();
    host_.switch_to(running_->stack);
  }
  unwinding_ = false;
}

// Where every fiber starts.
void Block::enter() {
  Fiber::arrived();
  Block& block = current_block();
  acquire(block.launch_begin_);
  try {
    if (!block.unwinding_) block.grid->invoke(block.grid->arguments);
  } catch (const Unwind&) {
  } catch (...) {
    if (!block.error_) block.error_ = std::current_exception();
  }
  release(block.launch_end_);
  block.finish_thread();
}

void Block::finish_thread() {
  CudaThread& self = *running_;
  CudaThread* following = nullptr;
  self.exited = true;
  if (!error_) {
    const Unrecorded unrecorded;
    if (first_exited_ == nullptr) first_exited_ = &self;
    ++exited_;
    set(self.number, false);
    try {
      if (at_barrier_ > 0)
        fail(first_at_barrier_->site,
             "this thread exits, while " + place(*first_at_barrier_) + " waits at __syncthreads()");
      check_exit(*this);
      if (exited_ < count_) following = next();
    } catch (...) {
      error_ = std::current_exception();
    }
  }
  if (following == nullptr) self.stack.leave(host_);
  current_thread = running_ = following;
  self.stack.leave(following->stack);
}

CudaThread* Block::scan(unsigned from, bool down) {
  // Words of the bit set, from the one with `from` round to it again.
  const auto words = static_cast<unsigned>(ready_.size());
  for (unsigned i = 0; i <= words; ++i) {
    const unsigned word = (from / 64 + (down ? words - i % words : i)) % words;
    uint64_t bits = ready_[word];
    const uint64_t upwards = ~uint64_t{0} << (from % 64);
    const uint64_t downwards = ~uint64_t{0} >> (63 - from % 64);
    if (i == 0) bits &= down ? downwards : upwards;
    if (bits == 0) continue;
    const int bit = down ? 63 - __builtin_clzll(bits) : __builtin_ctzll(bits);
    return threads_[word * 64 + bit].get();
  }
  return nullptr;
}

// Half of the blocks let one warp run far ahead of the others, half mix all threads.
unsigned Block::random_start() {
  const uint64_t number = draw(random);
  if (warp_runs_ahead_ && running_ != nullptr && number >> 32 & 15) {
    const unsigned first = running_->number / kLanes * kLanes;
    const unsigned lane = static_cast<unsigned>(number % kLanes);
    const auto lanes = static_cast<uint32_t>(ready_[first / 64] >> first % 64);
    if (lanes >> lane != 0) return first + lane + __builtin_ctz(lanes >> lane);
    if (lanes != 0) return first + __builtin_ctz(lanes);
  }
  return static_cast<unsigned>(number % count_);
}

CudaThread* Block::next() {
  const Order order = settings().order;
  const unsigned last = count_ - 1;
  unsigned from = order == Order::reverse ? last : 0;
  if (order == Order::random) {
    from = random_start();
  } else if (running_ != nullptr && order == Order::forward) {
    from = running_->number == last ? 0 : running_->number + 1;
  } else if (running_ != nullptr) {
    from = running_->number == 0 ? last : running_->number - 1;
  }
  CudaThread* const found = scan(from, order == Order::reverse);
  if (found == nullptr) fail_deadlock();
  return found;
}

void Block::yield() {
  CudaThread& self = *running_;
  CudaThread* const following = next();
  if (following == &self) return;
  current_thread = running_ = following;
  self.stack.switch_to(following->stack);
  if (unwinding_) throw Unwind();
}

void Block::wait(const char* what, Site site) {
  running_->waits = what;
  running_->site = site;
  set(running_->number, false);
  yield();
  running_->waits = nullptr;
}

void Block::barrier(Site site) {
  CudaThread& self = *running_;
  if (exited_ > 0)
    fail(site, "waits at __syncthreads(), but " + place(*first_exited_) + " has exited");
  if (at_barrier_ == 0) first_at_barrier_ = &self;
  if (at_barrier_ > 0 && first_at_barrier_->site != site)
    fail(site, "divergent __syncthreads(): " + place(*first_at_barrier_) + " waits at " +
                   text(first_at_barrier_->site));
  self.site = site;
  ++at_barrier_;
  char* const sync = &barrier_sync_[generation_ % 2 * 8];
  release(sync);
  if (at_barrier_ < count_) {
    wait("__syncthreads()", site);
  } else {
    at_barrier_ = 0;
    ++generation_;
    ++counters->barriers;
    for (unsigned i = 0; i < count_; ++i) set(i, true);
    yield();
  }
  acquire(sync);
}

std::string Block::place(const CudaThread& thread) const {
  return "thread " + text(thread.thread_index);
}

void Block::fail(Site site, const std::string& what) const {
  throw std::runtime_error("emulated CUDA: kernel " + demangled(grid->kernel) + ", block " +
                           text(running_->block_index) + ", " + place(*running_) + ", " +
                           text(site) + ": " + what);
}

std::string Block::who_waits() const {
  std::string all;
  for (unsigned i = 0; i < count_;) {  // runs of threads that wait for the same thing
    const CudaThread& first = *threads_[i];
    unsigned end = i + 1;
    while (end < count_ && threads_[end]->exited == first.exited &&
           threads_[end]->waits == first.waits &&
           (first.waits == nullptr || threads_[end]->site == first.site))
      ++end;
    all += "\n  thread " + text(first.thread_index);
    if (end > i + 1) all += " to " + text(threads_[end - 1]->thread_index);
    all += first.exited  ? " exited"
           : first.waits ? std::string(" waits at ") + first.waits + ", " + text(first.site)
                         : " runs";
    i = end;
  }
  return all;
}

void Block::fail_deadlock() {
  fail(running_->waits != nullptr ? running_->site : Site{"exit", 0},
       "deadlock: no thread can go on:" + who_waits());
}

void run_grid(const Grid& grid) {
  static thread_local Block block;
  const uint64_t blocks = uint64_t{grid.grid.x} * grid.grid.y * grid.grid.z;
  const Order order = settings().order;
  Counters counters{1, static_cast<int64_t>(blocks), 0, 0, 0, 0, 0};
  std::vector<uint64_t> shuffled;
  if (order == Order::random) {
    shuffled.resize(blocks);
    std::iota(shuffled.begin(), shuffled.end(), uint64_t{0});
    for (uint64_t i = blocks; i > 1; --i)
      std::swap(shuffled[i - 1], shuffled[draw(settings().random) % i]);
  }
  block.random = draw(settings().random);
  char begin = 0, end = 0;
  Fiber::begin_launch();
  release(&begin);
  try {
    for (uint64_t i = 0; i < blocks; ++i) {
      const uint64_t number = order == Order::random    ? shuffled[i]
                              : order == Order::reverse ? blocks - 1 - i
                                                        : i;
      block.run(grid, index_of(number, grid.grid), counters, &begin, &end);
    }
  } catch (...) {
    acquire(&end);
    throw;
  }
  acquire(&end);
  add(counters);
}

}  // namespace atlas::emulation
