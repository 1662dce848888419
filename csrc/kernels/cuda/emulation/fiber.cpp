#include "kernels/cuda/emulation/fiber.h"

#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "kernels/cuda/emulation/sanitizer.h"

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#define ATLAS_FIBER_UCONTEXT
#endif

namespace atlas::emulation {
namespace {

#ifdef ATLAS_EMULATION_ADDRESS
constexpr size_t kStackBytes = 1 << 20;  // instrumented frames are several times larger
#else
constexpr size_t kStackBytes = 128 << 10;
#endif
constexpr unsigned kColours = 16, kColourBytes = 192;

size_t page() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

#ifdef ATLAS_EMULATION_THREAD
// ThreadSanitizer's threads, which take it half a millisecond to make. Launches follow each other,
// so one may be used again in the next launch, but in no other block of the same.
struct ThreadFibers {
  static constexpr size_t kKept = 2048;
  std::vector<void*> all;
  size_t used = 0;

  void* take() {
    if (used < all.size()) return all[used++];
    void* fiber = __tsan_create_fiber(0);
    if (used < kKept) {
      all.push_back(fiber);
      ++used;
    }
    return fiber;
  }
  void give_back(void* fiber) {
    if (std::find(all.begin(), all.end(), fiber) == all.end()) __tsan_destroy_fiber(fiber);
  }
};
thread_local ThreadFibers thread_fibers;
#endif

}  // namespace

// atlas_fiber_switch(save, load): pushes what the ABI lets a callee keep, stores the stack pointer
// in *save, and continues where `load` was stored.
#ifdef ATLAS_FIBER_UCONTEXT

namespace {
void atlas_fiber_switch(void** save, void* load) {
  ucontext_t here;
  *save = &here;
  swapcontext(&here, static_cast<ucontext_t*>(load));
}
}  // namespace

#else

extern "C" void atlas_fiber_switch(void** save, void* load) __attribute__((visibility("hidden")));

#ifdef __x86_64__
asm(R"(
.text
.globl atlas_fiber_switch
.hidden atlas_fiber_switch
.type atlas_fiber_switch, @function
atlas_fiber_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size atlas_fiber_switch, .-atlas_fiber_switch
)");
constexpr size_t kEntryWord = 6, kFrameWords = 8;
#else
asm(R"(
.text
.globl atlas_fiber_switch
.hidden atlas_fiber_switch
.type atlas_fiber_switch, %function
atlas_fiber_switch:
  stp x19, x20, [sp, #-160]!
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  ldp x19, x20, [sp], #160
  ret
.size atlas_fiber_switch, .-atlas_fiber_switch
)");
constexpr size_t kEntryWord = 11, kFrameWords = 20;
#endif
#endif

Fiber::~Fiber() {
  finish();
  if (owns_stack_) munmap(stack_ - page(), kStackBytes + page());
}

void Fiber::adopt_thread() {
#ifdef ATLAS_EMULATION_ADDRESS
  pthread_attr_t attributes;
  void* bottom = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &bottom, &stack_bytes_);
  pthread_attr_destroy(&attributes);
  stack_ = static_cast<char*>(bottom);
#endif
#ifdef ATLAS_EMULATION_THREAD
  thread_fiber_ = __tsan_get_current_fiber();
#endif
}

void Fiber::begin_launch() {
#ifdef ATLAS_EMULATION_THREAD
  thread_fibers.used = 0;
#endif
}

void Fiber::allocate() {
  void* memory = mmap(nullptr, kStackBytes + page(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, page(), PROT_NONE);
  stack_ = static_cast<char*>(memory) + page();
  stack_bytes_ = kStackBytes;
  owns_stack_ = true;
}

void Fiber::start(Entry entry, unsigned number) {
  if (!owns_stack_) allocate();
  unpoison(stack_, stack_bytes_);  // an earlier run may have been abandoned in mid-function
  fake_stack_ = nullptr;
#ifdef ATLAS_EMULATION_THREAD
  // Mapped anew, the used part of the stack forgets who used it.
  unsigned char resident[kStackBytes / 4096];
  size_t unused = 0;
  mincore(stack_, stack_bytes_, resident);
  while (unused < stack_bytes_ && (resident[unused / page()] & 1) == 0) unused += page();
  if (unused < stack_bytes_)
    mmap(stack_ + unused, stack_bytes_ - unused, PROT_READ | PROT_WRITE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  thread_fiber_ = thread_fibers.take();
#endif
  char* top = stack_ + stack_bytes_ - number % kColours * kColourBytes;
#ifdef ATLAS_FIBER_UCONTEXT
  auto* context = reinterpret_cast<ucontext_t*>(top) - 1;
  getcontext(context);
  context->uc_stack.ss_sp = stack_;
  context->uc_stack.ss_size = reinterpret_cast<char*>(context) - stack_ - 64;
  context->uc_link = nullptr;
  makecontext(context, entry, 0);
  stack_pointer_ = context;
#else
  // The words above the frame stay zero: the return address of `entry`, where backtraces end.
  auto** frame = reinterpret_cast<void**>(top) - kFrameWords;
  for (size_t i = 0; i < kFrameWords; ++i) frame[i] = nullptr;
  frame[kEntryWord] = reinterpret_cast<void*>(entry);
  stack_pointer_ = frame;
#endif
}

void Fiber::prepare_switch([[maybe_unused]] Fiber& next, [[maybe_unused]] bool last) {
#ifdef ATLAS_EMULATION_ADDRESS
  __sanitizer_start_switch_fiber(last ? nullptr : &fake_stack_, next.stack_, next.stack_bytes_);
#endif
#ifdef ATLAS_EMULATION_THREAD
  constexpr unsigned kNoSynchronisation = 1;
  __tsan_switch_to_fiber(next.thread_fiber_, kNoSynchronisation);
#endif
}

void Fiber::switch_to(Fiber& next) {
  prepare_switch(next, false);
  atlas_fiber_switch(&stack_pointer_, next.stack_pointer_);
#ifdef ATLAS_EMULATION_ADDRESS
  __sanitizer_finish_switch_fiber(fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::arrived() {
#ifdef ATLAS_EMULATION_ADDRESS
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}

void Fiber::leave(Fiber& next) {
  prepare_switch(next, true);
  atlas_fiber_switch(&stack_pointer_, next.stack_pointer_);
  std::abort();  // nobody continues a fiber that has left
}

void Fiber::finish() {
#ifdef ATLAS_EMULATION_THREAD
  if (owns_stack_ && thread_fiber_ != nullptr) thread_fibers.give_back(thread_fiber_);
#endif
  if (owns_stack_) thread_fiber_ = nullptr;
}

}  // namespace atlas::emulation
