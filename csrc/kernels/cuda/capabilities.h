#pragma once
// Limits of devices that are not at hand, by capability (CUDA programming guide).

namespace atlas::kernels::cuda {

// Most shared memory that a block may opt in to, in KiB; 0 for a capability that is not listed.
constexpr int shared_kibibytes(int capability) {
  switch (capability) {
    case 75:
      return 64;
    case 80:
    case 87:
      return 163;
    case 86:
    case 89:
    case 120:
      return 99;
    case 90:
    case 100:
      return 227;
    default:
      return 0;
  }
}

// Blocks with more dynamic shared memory opt in to it. 48 KiB need no opting in, but static arrays
// count as well: they have the 2 KiB between.
constexpr int kOptInBeyond = 46 << 10;

}  // namespace atlas::kernels::cuda
