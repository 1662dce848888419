#pragma once
// Fibers: stacks that one OS thread switches between. A CUDA thread runs on one.
#include <cstddef>

namespace atlas::emulation {

class Fiber {
 public:
  using Entry = void (*)();  // must not return: it ends in leave()

  Fiber() = default;
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes this object the OS thread's own stack, to which fibers return.
  void adopt_thread();

  // All that this OS thread's fibers did so far happens before what they will do.
  static void begin_launch();

  // A fresh start at `entry`; the stack is allocated once and used again. `number` spreads stacks
  // over cache sets, which equal page offsets would share.
  void start(Entry entry, unsigned number);

  // Continues `next`; returns when something switches back. The first call in a new fiber's entry
  // is arrived().
  void switch_to(Fiber& next);
  static void arrived();

  // As switch_to, for the last time.
  [[noreturn]] void leave(Fiber& next);

  // Ends the sanitizer's view of a started fiber; it may be in the middle of a kernel.
  void finish();

 private:
  void allocate();
  void prepare_switch(Fiber& next, bool last);

  void* stack_pointer_ = nullptr;
  char* stack_ = nullptr;  // lowest usable address; an inaccessible page lies below
  size_t stack_bytes_ = 0;
  bool owns_stack_ = false;
  void* fake_stack_ = nullptr;    // AddressSanitizer's
  void* thread_fiber_ = nullptr;  // ThreadSanitizer's
};

}  // namespace atlas::emulation
