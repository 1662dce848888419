#pragma once
// Slots and positions of the rows that a token is decoded for. A row's heads belong to different
// blocks, which read one position; the last of them counts the token in it. Until then the
// position's high bits say how many have read it, so nobody waits and nothing is left behind.
#include "kernels/cuda/omega_work.cuh"

namespace atlas::kernels::cuda {

__device__ __forceinline__ int64_t slot_of(const OmegaUpdate& args, int64_t row) {
  if (args.slots == nullptr) return row;
  return args.wide_slots ? static_cast<const int64_t*>(args.slots)[row]
                         : static_cast<const int32_t*>(args.slots)[row];
}

// Of positions: what is left of a word beside kReading, the sign, and a count of heads.
__device__ __forceinline__ int position_bits(int heads) { return 30 + __clz(heads); }

// The slot's position before this token; negative if the slot is none or the position has too many
// bits.
__device__ __forceinline__ int64_t position_of(const OmegaUpdate& args, int64_t slot) {
  if (slot < 0 || slot >= args.in.sequences) return -1;
  const int64_t found = atomic_load(args.position + slot * args.position_stride),
                most = (int64_t{1} << position_bits(args.options.heads)) - 1;
  if (found >= kReading) return found & most;
  return found < most ? found : -1;
}

// By every head when it has read a valid position: the last one counts the token. A thread does it
// while the others go on.
__device__ __forceinline__ void count_token(const OmegaUpdate& args, const OmegaItem& item) {
  if (thread_id() + 1 != block_threads()) return;
  const int heads = args.options.heads, bits = position_bits(heads);
  const int64_t one = int64_t{1} << bits;  // head
  int64_t* const at = args.position + item.n * args.position_stride;
  atomic_or(at, kReading);
  const int64_t read = ((atomic_add(at, one) - kReading) >> bits) + 1;
  if (read == heads) atomic_add(at, 1 - heads * one - kReading);
}

}  // namespace atlas::kernels::cuda
