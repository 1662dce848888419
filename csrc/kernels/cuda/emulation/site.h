#pragma once
// Where in a kernel's source an emulated operation was written.

namespace atlas::emulation {

struct Site {
  const char* file;
  int line;

  // As a default argument it names the caller of the function that has it.
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
  // One string literal may have several addresses: names are compared by text where lines agree.
  bool operator==(const Site& other) const {
    return line == other.line && (file == other.file || __builtin_strcmp(file, other.file) == 0);
  }
  bool operator!=(const Site& other) const { return !(*this == other); }
};

}  // namespace atlas::emulation
