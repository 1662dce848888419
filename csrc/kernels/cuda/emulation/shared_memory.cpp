#include "kernels/cuda/emulation/shared_memory.h"

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>

#include "kernels/cuda/emulation/sanitizer.h"

namespace atlas::emulation {
namespace {

constexpr size_t kCapacity = 512 << 10;  // what the largest device has, and many redzones
constexpr size_t kRedzone = 256, kAlign = 16;
constexpr unsigned char kNan = 0xff;

// A byte of a redzone: NaN in every floating type, and neither -1 nor the arrays' own filling.
[[maybe_unused]] unsigned char pattern(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 4 == 0 ? 0xfe : 0xff;
}

[[maybe_unused]] void fill_redzone(char* begin, const char* end) {
  for (; begin != end; ++begin) *begin = static_cast<char>(pattern(begin));
}

size_t align(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

}  // namespace

SharedMemory::~SharedMemory() {
  if (base_ != nullptr) unpoison(base_, kCapacity);
  std::free(base_);
}

void SharedMemory::begin(size_t dynamic_bytes) {
  if (base_ != nullptr) unpoison(base_, kCapacity);
#ifdef ATLAS_EMULATION_THREAD
  std::free(base_);  // fresh memory has no history of another block's accesses
  base_ = nullptr;
#endif
  if (base_ == nullptr) base_ = static_cast<char*>(std::aligned_alloc(kRedzone, kCapacity));
  if (base_ == nullptr) throw std::bad_alloc();
  poison(base_, kCapacity);
  regions_.clear();
  end_ = static_bytes_ = 0;
  add(nullptr, dynamic_bytes, "dynamic shared memory");
}

void* SharedMemory::add(const void* key, size_t bytes, const char* name) {
  const size_t offset = (end_ == 0 ? kRedzone : end_), after = offset + align(bytes) + kRedzone;
  if (after > kCapacity) throw std::runtime_error("emulated CUDA: shared memory: too many arrays");
  char* const array = base_ + offset;
#ifndef ATLAS_EMULATION_ADDRESS
  if (end_ == 0) fill_redzone(base_, base_ + kRedzone);
  fill_redzone(array + bytes, base_ + after);
#endif
  unpoison(array, bytes);
  std::memset(array, kNan, bytes);
  end_ = after;
  if (key != nullptr) static_bytes_ += align(bytes);
  regions_.push_back({key, name, offset, bytes});
  return array;
}

void* SharedMemory::array(const void* key, size_t bytes, const char* name) {
  for (const Region& region : regions_)
    if (region.key == key) return base_ + region.offset;
  return add(key, bytes, name);
}

bool SharedMemory::holds(const void* address, size_t bytes) const {
  const auto* begin = static_cast<const char*>(address);
  for (const Region& region : regions_) {
    const char* array = base_ + region.offset;
    if (begin >= array && begin + bytes <= array + region.bytes) return true;
  }
  return false;
}

std::string SharedMemory::damage() const {
#ifndef ATLAS_EMULATION_ADDRESS
  for (const Region& region : regions_) {
    const char* array = base_ + region.offset;
    const auto* bytes = reinterpret_cast<const unsigned char*>(array);
    for (size_t i = 1; i <= kRedzone; ++i)
      if (*(bytes - i) != pattern(bytes - i))
        return std::string(region.name) + ": written " + std::to_string(i) +
               " bytes before its start";
    for (size_t i = region.bytes; i < align(region.bytes) + kRedzone; ++i)
      if (bytes[i] != pattern(bytes + i))
        return std::string(region.name) + ": written " + std::to_string(i - region.bytes) +
               " bytes past its end";
  }
#endif
  return {};
}

}  // namespace atlas::emulation
