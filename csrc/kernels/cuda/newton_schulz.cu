#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/newton_schulz.cuh"
#include "kernels/cuda/newton_schulz_backward.cuh"

namespace atlas::kernels::cuda {
namespace {

// A float matrix of side 128 with all that the backward holds fits in no device's shared memory.
template <class Tile>
constexpr int largest_side(bool backward) {
  return backward && sizeof(typename Tile::Element) == 4 ? 64 : 128;
}

// Which arithmetic a call takes. Below sm_80 tensor cores know f16 alone. The backward of bf16
// multiplies in tf32: with eight bits its round-off, amplified by the steps, reaches the gradient's
// first digit.
enum class Arithmetic { half, tf32, simple };

Arithmetic arithmetic(Dtype dtype, bool allow_tf32, bool backward) {
  if (dtype == Dtype::f16) return Arithmetic::half;
  if (current_device().capability < 80) return Arithmetic::simple;
  if (dtype == Dtype::bf16) return backward ? Arithmetic::tf32 : Arithmetic::half;
  return allow_tf32 ? Arithmetic::tf32 : Arithmetic::simple;
}

// Calls use(Traits) for the smallest kSize that holds the shorter side; `none` if there is none.
template <bool kBackward, class Tile, class Use, class None>
None with_size(int shorter, const Use& use, None none) {
  if (shorter <= 16) return use(NewtonSchulzTraits<Tile, 16>());
  if (shorter <= 32) return use(NewtonSchulzTraits<Tile, 32>());
  if (shorter <= 64) return use(NewtonSchulzTraits<Tile, 64>());
  if constexpr (largest_side<Tile>(kBackward) == 128)
    if (shorter <= 128) return use(NewtonSchulzTraits<Tile, 128>());
  return none;
}

// Calls use(T(), Traits()) for the kernel instance that a call takes; `none` if there is none.
template <bool kBackward, class Use, class None>
None with_instance(Dtype dtype, bool allow_tf32, int m, int n, const Use& use, None none) {
  const Arithmetic kind = arithmetic(dtype, allow_tf32, kBackward);
  const int shorter = m < n ? m : n;
  const auto with_bf16 = [&](auto traits) { return use(bf16(), traits); };
  const auto with_float = [&](auto traits) { return use(float(), traits); };
  if (dtype == Dtype::f16)
    return with_size<kBackward, HalfTile<f16>>(
        shorter, [&](auto traits) { return use(f16(), traits); }, none);
  if constexpr (!kBackward)
    if (kind == Arithmetic::half)
      return with_size<kBackward, HalfTile<bf16>>(shorter, with_bf16, none);
  if (kind == Arithmetic::tf32) {
    if constexpr (kBackward)
      if (dtype == Dtype::bf16) return with_size<kBackward, Tf32Tile>(shorter, with_bf16, none);
    return with_size<kBackward, Tf32Tile>(shorter, with_float, none);
  }
  return dtype == Dtype::bf16 ? with_size<kBackward, FloatTile>(shorter, with_bf16, none)
                              : with_size<kBackward, FloatTile>(shorter, with_float, none);
}

template <class Traits>
int64_t shared_bytes(const NewtonSchulzShape& shape, bool backward) {
  return Traits::kMatrices * static_cast<int64_t>(sizeof(typename Traits::Element)) *
         (backward ? backward_elements<Traits>(shape) : forward_elements<Traits>(shape));
}

template <class Traits>
int64_t groups(int64_t batch) {
  return (batch + Traits::kMatrices - 1) / Traits::kMatrices;
}

// The backward's blocks take matrices in turn, so that its scratch does not grow with the batch.
template <class Traits>
int64_t backward_blocks(int64_t batch) {
  constexpr int64_t kBlocksPerMultiprocessor = 4;
  const int64_t most = kBlocksPerMultiprocessor * current_device().multiprocessors;
  return groups<Traits>(batch) < most ? groups<Traits>(batch) : most;
}

}  // namespace

bool newton_schulz_is_fused(Dtype dtype, int m, int n, bool backward) {
  const NewtonSchulzShape shape(m, n);
  const auto fits = [&](auto, auto traits) {
    constexpr int64_t kStatic = 1 << 10;
    return shared_bytes<decltype(traits)>(shape, backward) + kStatic <=
           current_device().shared_bytes;
  };
  return backward ? with_instance<true>(dtype, false, m, n, fits, false)
                  : with_instance<false>(dtype, false, m, n, fits, false);
}

int64_t newton_schulz_scratch(const NewtonSchulz& args) {
  const NewtonSchulzShape shape(args.m, args.n);
  const auto bytes = [&](auto, auto traits) {
    using Traits = decltype(traits);
    return backward_blocks<Traits>(args.batch) * Traits::kMatrices *
           tape_elements<Traits>(shape, args.schedule.steps) *
           static_cast<int64_t>(sizeof(typename Traits::Element));
  };
  return with_instance<true>(args.dtype, args.allow_tf32, args.m, args.n, bytes, int64_t{0});
}

cudaError_t newton_schulz(const NewtonSchulz& args, cudaStream_t stream) {
  const NewtonSchulzShape shape(args.m, args.n);
  const auto start = [&](auto element, auto traits) {
    using T = decltype(element);
    using Traits = decltype(traits);
    return launch<newton_schulz_kernel<typename Traits::Tile, Traits::kSize, T>>(
        dim3(static_cast<unsigned>(groups<Traits>(args.batch))), dim3(Traits::kThreads),
        static_cast<size_t>(shared_bytes<Traits>(shape, false)), stream,
        static_cast<const T*>(args.x), static_cast<T*>(args.out), args.batch, args.m, args.n,
        args.scale, args.eps, args.schedule);
  };
  return with_instance<false>(args.dtype, args.allow_tf32, args.m, args.n, start,
                              cudaErrorInvalidValue);
}

cudaError_t newton_schulz_backward(const NewtonSchulz& args, cudaStream_t stream) {
  const NewtonSchulzShape shape(args.m, args.n);
  const auto start = [&](auto element, auto traits) {
    using T = decltype(element);
    using Traits = decltype(traits);
    return launch<newton_schulz_backward_kernel<typename Traits::Tile, Traits::kSize, T>>(
        dim3(static_cast<unsigned>(backward_blocks<Traits>(args.batch))), dim3(Traits::kThreads),
        static_cast<size_t>(shared_bytes<Traits>(shape, true)), stream,
        static_cast<const T*>(args.x), static_cast<const T*>(args.grad), static_cast<T*>(args.out),
        static_cast<typename Traits::Element*>(args.scratch), args.batch, args.m, args.n,
        args.scale, args.eps, args.schedule);
  };
  return with_instance<true>(args.dtype, args.allow_tf32, args.m, args.n, start,
                             cudaErrorInvalidValue);
}

}  // namespace atlas::kernels::cuda
