#pragma once
// The shared memory of one block: every array between redzones, filled with NaN.
#include <cstddef>
#include <string>
#include <vector>

namespace atlas::emulation {

class SharedMemory {
 public:
  ~SharedMemory();
  SharedMemory() = default;
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Forgets everything; a block with this much dynamic memory begins.
  void begin(size_t dynamic_bytes);

  // The array declared at `key`, allocated by the first thread to come there.
  void* array(const void* key, size_t bytes, const char* name);
  void* dynamic() const { return base_ + regions_[0].offset; }
  size_t static_bytes() const { return static_bytes_; }

  // Whether all of [address, address + bytes) lies in one array.
  bool holds(const void* address, size_t bytes) const;

  // Empty, or which array's redzone was written to.
  std::string damage() const;

 private:
  struct Region {
    const void* key;
    const char* name;
    size_t offset, bytes;
  };
  void* add(const void* key, size_t bytes, const char* name);

  char* base_ = nullptr;
  size_t end_ = 0;  // of the last redzone
  size_t static_bytes_ = 0;
  std::vector<Region> regions_;
};

}  // namespace atlas::emulation
