#pragma once
// What a user of the emulator chooses, and what it counts. One set per process.
#include <cstdint>
#include <string>

namespace atlas::emulation {

enum class Order { forward, reverse, random };
enum class CopyMode { early, late, random };  // when a cp.async lands: at issue, at its wait

struct Settings {
  Order order = Order::forward;
  uint64_t random = 1;  // state of the generator; advances
  CopyMode copies = CopyMode::early;
  int capability = 80;
  int shared_bytes = 163 << 10;  // most that a block may opt in to
  int multiprocessors = 108;
};

struct Counters {
  int64_t launches, blocks, barriers, warp_operations, async_copies, ldmatrix, mma;
};

// A draw from a state that it advances (splitmix64).
inline uint64_t draw(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

Settings& settings();
Counters counters();
void add(const Counters& more);
void reset_counters();

// By the names that the Python module takes; they throw for others.
void set_order(const std::string& order, uint64_t seed);
void set_copies(const std::string& mode);
void set_device(int capability, int multiprocessors, int shared_kib = 0);

}  // namespace atlas::emulation
