#pragma once
// The sanitizers' interface to fibers and memory; nothing in plain builds. The runtime itself is
// compiled without instrumentation, so CMake defines the macros, not the compiler.
//   ATLAS_EMULATION_ADDRESS   kernels are compiled with -fsanitize=address
//   ATLAS_EMULATION_THREAD    kernels are compiled with -fsanitize=thread
#include <cstddef>

#ifdef ATLAS_EMULATION_ADDRESS
extern "C" {
void __asan_poison_memory_region(const volatile void* address, size_t bytes);
void __asan_unpoison_memory_region(const volatile void* address, size_t bytes);
void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
}
#endif
#ifdef ATLAS_EMULATION_THREAD
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace atlas::emulation {

inline void poison([[maybe_unused]] const void* address, [[maybe_unused]] size_t bytes) {
#ifdef ATLAS_EMULATION_ADDRESS
  __asan_poison_memory_region(address, bytes);
#endif
}

inline void unpoison([[maybe_unused]] const void* address, [[maybe_unused]] size_t bytes) {
#ifdef ATLAS_EMULATION_ADDRESS
  __asan_unpoison_memory_region(address, bytes);
#endif
}

// What happened before a release of `address` happens before what follows an acquire of it.
inline void release([[maybe_unused]] void* address) {
#ifdef ATLAS_EMULATION_THREAD
  __tsan_release(address);
#endif
}

inline void acquire([[maybe_unused]] void* address) {
#ifdef ATLAS_EMULATION_THREAD
  __tsan_acquire(address);
#endif
}

// While one lives, what the running fiber does to memory is the emulator's business: not recorded,
// and memory that it allocates has no history.
class Unrecorded {
 public:
  Unrecorded() {
#ifdef ATLAS_EMULATION_THREAD
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
#endif
  }
  ~Unrecorded() {
#ifdef ATLAS_EMULATION_THREAD
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
#endif
  }
  Unrecorded(const Unrecorded&) = delete;
  Unrecorded& operator=(const Unrecorded&) = delete;
};

}  // namespace atlas::emulation
