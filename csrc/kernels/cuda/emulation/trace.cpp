#include "kernels/cuda/emulation/trace.h"

#include <sys/stat.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace atlas::emulation {
namespace {

constexpr unsigned char kUnwritten = 0xff;  // NaN: fills undefined memory while tracing

struct Buffer {
  const void* address;
  size_t bytes;
  std::string dtype, name;
  bool undefined, compared;
};

thread_local std::vector<Buffer> buffers;
thread_local std::string line;  // of the launch under way
thread_local int launch_number;

std::mutex mutex;
bool chosen = false;  // by set_trace, which overrides the environment
std::string directory;
int launches = 0;

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c;
  }
  return result + "\"";
}

void write(const std::string& path, const void* bytes, size_t count, const char* mode) {
  std::FILE* file = std::fopen(path.c_str(), mode);
  bool written = file != nullptr && std::fwrite(bytes, 1, count, file) == count;
  if (file != nullptr) written = std::fclose(file) == 0 && written;
  if (!written) throw std::runtime_error("emulated CUDA: trace: could not write " + path);
}

std::string extent(Extent size) {
  return "[" + std::to_string(size.x) + ", " + std::to_string(size.y) + ", " +
         std::to_string(size.z) + "]";
}

std::string hex(const Parameter& parameter) {
  static const char digits[] = "0123456789abcdef";
  std::string text;
  for (size_t i = 0; i < parameter.size; ++i) {
    const unsigned char byte = static_cast<const unsigned char*>(parameter.bytes)[i];
    text += {digits[byte / 16], digits[byte % 16]};
  }
  return quoted(text);
}

std::string file_name(size_t buffer, const char* when) {
  return std::to_string(launch_number) + "_" + std::to_string(buffer) + "." + when;
}

// Bytes of an element: what is behind the letters of float32 or bfloat16.
size_t element_bytes(const std::string& dtype) {
  const size_t digits = dtype.find_first_of("0123456789");
  return digits == std::string::npos ? 1 : std::stoul(dtype.substr(digits)) / 8;
}

// Bytes of elements that still hold the filling.
size_t count_unwritten(const Buffer& buffer) {
  const auto* bytes = static_cast<const unsigned char*>(buffer.address);
  const size_t width = element_bytes(buffer.dtype);
  size_t count = 0;
  for (size_t i = 0; i + width <= buffer.bytes; i += width) {
    const bool unwritten = std::all_of(bytes + i, bytes + i + width,
                                       [](unsigned char byte) { return byte == kUnwritten; });
    count += unwritten ? width : 0;
  }
  return count;
}

void open(const std::string& chosen_directory) {
  directory = chosen_directory;
  chosen = true;
  launches = 0;
  if (directory.empty()) return;
  mkdir(directory.c_str(), 0777);
  write(directory + "/trace.jsonl", "", 0, "wb");
}

}  // namespace

void register_buffer(const void* address, size_t bytes, const char* dtype, const char* name,
                     Use use) {
  if (bytes == 0) return;
  for (const Buffer& known : buffers)
    if (known.address == address && known.bytes == bytes) return;
  buffers.push_back({address, bytes, dtype, name, use != Use::read, use != Use::scratch});
}

void forget_buffers() { buffers.clear(); }

void set_trace(const std::string& chosen_directory) {
  const std::lock_guard<std::mutex> lock(mutex);
  open(chosen_directory);
}

bool tracing() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (!chosen) {
    const char* wanted = std::getenv("ATLAS_EXT_TRACE");
    open(wanted != nullptr ? wanted : "");
  }
  return !directory.empty();
}

void trace_before(const Launch& launch, const char* kernel) {
  const std::lock_guard<std::mutex> lock(mutex);
  launch_number = launches++;
  line = "{\"kernel\": " + quoted(kernel) + ", \"grid\": " + extent(launch.grid) +
         ", \"block\": " + extent(launch.block) +
         ", \"dynamic_shared\": " + std::to_string(launch.shared_bytes) + ", \"params\": [";
  for (size_t i = 0; i < launch.parameters.size(); ++i)
    line += (i != 0 ? ", " : "") + hex(launch.parameters[i]);
  line += "], \"buffers\": [";
  for (size_t i = 0; i < buffers.size(); ++i) {
    const Buffer& buffer = buffers[i];
    if (buffer.undefined) std::memset(const_cast<void*>(buffer.address), kUnwritten, buffer.bytes);
    write(directory + "/" + file_name(i, "before"), buffer.address, buffer.bytes, "wb");
  }
}

void trace_after() {
  const std::lock_guard<std::mutex> lock(mutex);
  for (size_t i = 0; i < buffers.size(); ++i) {
    Buffer& buffer = buffers[i];
    // Undefined is what was undefined and has been written in full; where a part was left out, its
    // filling is a value like others, and where all was, there is nothing to compare.
    const size_t unwritten = buffer.undefined && buffer.compared ? count_unwritten(buffer) : 0;
    const bool untouched = buffer.undefined && unwritten == buffer.bytes;
    const bool is_null = buffer.undefined && (unwritten == 0 || untouched);
    const bool compared = buffer.compared && !untouched;
    char address[32];
    std::snprintf(address, sizeof address, "%p", buffer.address);
    line += std::string(i != 0 ? ", " : "") + "{\"address\": " + quoted(address) +
            ", \"nbytes\": " + std::to_string(buffer.bytes) +
            ", \"before\": " + (is_null ? "null" : quoted(file_name(i, "before"))) +
            ", \"after\": " + (compared ? quoted(file_name(i, "after")) : "null") +
            ", \"dtype\": " + quoted(buffer.dtype) + ", \"name\": " + quoted(buffer.name) + "}";
    buffer.undefined = untouched;
    if (is_null) std::remove((directory + "/" + file_name(i, "before")).c_str());
    if (compared)
      write(directory + "/" + file_name(i, "after"), buffer.address, buffer.bytes, "wb");
  }
  line += "]}\n";
  write(directory + "/trace.jsonl", line.data(), line.size(), "ab");
}

}  // namespace atlas::emulation
