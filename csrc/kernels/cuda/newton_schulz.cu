#include <type_traits>

#include "kernels/cuda/capabilities.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/newton_schulz.cuh"
#include "kernels/cuda/newton_schulz_backward.cuh"

namespace atlas::kernels::cuda {
namespace {

template <class Traits>
constexpr int64_t shared_bytes(const NewtonSchulzShape& shape, bool backward) {
  return Traits::kMatrices * static_cast<int64_t>(sizeof(typename Traits::Element)) *
         (backward ? backward_elements<Traits>(shape) : forward_elements<Traits>(shape));
}

constexpr bool fits(int64_t shared_bytes, int limit) {
  constexpr int kStatic = 1 << 10;
  return shared_bytes + kStatic <= limit;
}

// Whether the smallest matrix of an instance fits on some device that chooses it; instances that
// none fits are not compiled. Of bf16, sm_75 alone takes float multiply-adds.
template <class Traits, class T>
constexpr bool fits_somewhere(bool backward) {
  constexpr bool kOldest =
      std::is_same_v<typename Traits::Tile, FloatTile> && std::is_same_v<T, bf16>;
  constexpr int kShorter = Traits::kSize == 16 ? 1 : Traits::kSize / 2 + 1;
  return fits(shared_bytes<Traits>(NewtonSchulzShape(kShorter, kShorter), backward),
              shared_kibibytes(kOldest ? 75 : 90) << 10);
}

// Which arithmetic a call takes. Below sm_80 tensor cores know f16 alone. The backward of bf16
// multiplies in tf32: with eight bits its round-off, amplified by the steps, reaches the gradient's
// first digit.
enum class Arithmetic { half, tf32, simple };

Arithmetic arithmetic(Dtype dtype, bool allow_tf32, bool backward, int capability) {
  if (dtype == Dtype::f16) return Arithmetic::half;
  if (capability < 80) return Arithmetic::simple;
  if (dtype == Dtype::bf16) return backward ? Arithmetic::tf32 : Arithmetic::half;
  return allow_tf32 ? Arithmetic::tf32 : Arithmetic::simple;
}

// Calls use(T(), Traits()) for the smallest kSize that holds the shorter side; `none` if there is
// no such instance.
template <bool kBackward, class Tile, class T, class Use, class None>
None with_size(int shorter, const Use& use, None none) {
  const auto with = [&](auto traits) -> None {
    if constexpr (fits_somewhere<decltype(traits), T>(kBackward))
      return use(T(), traits);
    else
      return none;
  };
  if (shorter <= 16) return with(NewtonSchulzTraits<Tile, 16>());
  if (shorter <= 32) return with(NewtonSchulzTraits<Tile, 32>());
  if (shorter <= 64) return with(NewtonSchulzTraits<Tile, 64>());
  if (shorter <= 128) return with(NewtonSchulzTraits<Tile, 128>());
  return none;
}

// Calls use(T(), Traits()) for the kernel instance that a call takes; `none` if there is none.
template <bool kBackward, class Use, class None>
None with_instance(Dtype dtype, bool allow_tf32, int m, int n, int capability, const Use& use,
                   None none) {
  const Arithmetic kind = arithmetic(dtype, allow_tf32, kBackward, capability);
  const int shorter = m < n ? m : n;
  if (dtype == Dtype::f16) return with_size<kBackward, HalfTile<f16>, f16>(shorter, use, none);
  if constexpr (!kBackward)
    if (kind == Arithmetic::half)
      return with_size<kBackward, HalfTile<bf16>, bf16>(shorter, use, none);
  if (kind == Arithmetic::tf32) {
    if constexpr (kBackward)
      if (dtype == Dtype::bf16) return with_size<kBackward, Tf32Tile, bf16>(shorter, use, none);
    return with_size<kBackward, Tf32Tile, float>(shorter, use, none);
  }
  return dtype == Dtype::bf16 ? with_size<kBackward, FloatTile, bf16>(shorter, use, none)
                              : with_size<kBackward, FloatTile, float>(shorter, use, none);
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

template <bool kBackward>
NewtonSchulzPlan plan(Dtype dtype, int m, int n, bool allow_tf32, int capability, int limit) {
  const NewtonSchulzShape shape(m, n);
  const auto describe = [&](auto, auto traits) {
    using Traits = decltype(traits);
    using Tile = typename Traits::Tile;
    NewtonSchulzPlan found{};
    found.arithmetic = std::is_same_v<Tile, FloatTile>        ? "float multiply-adds"
                       : std::is_same_v<Tile, Tf32Tile>       ? "tf32 tensor cores"
                       : std::is_same_v<Tile, HalfTile<bf16>> ? "bf16 tensor cores"
                                                              : "f16 tensor cores";
    found.size = Traits::kSize;
    found.matrices = Traits::kMatrices;
    found.threads = Traits::kThreads;
    found.shared_bytes = shared_bytes<Traits>(shape, kBackward);
    found.fused = fits(found.shared_bytes, limit);
    return found;
  };
  return with_instance<kBackward>(dtype, allow_tf32, m, n, capability, describe,
                                  NewtonSchulzPlan{});
}

}  // namespace

NewtonSchulzPlan newton_schulz_plan(Dtype dtype, int m, int n, bool allow_tf32, bool backward,
                                    int capability, int limit) {
  if (limit < 0) limit = shared_kibibytes(capability) << 10;
  return backward ? plan<true>(dtype, m, n, allow_tf32, capability, limit)
                  : plan<false>(dtype, m, n, allow_tf32, capability, limit);
}

bool newton_schulz_is_fused(Dtype dtype, int m, int n, bool backward) {
  const Device device = current_device();
  return newton_schulz_plan(dtype, m, n, false, backward, device.capability, device.shared_bytes)
      .fused;
}

int64_t newton_schulz_scratch(const NewtonSchulz& args) {
  const NewtonSchulzShape shape(args.m, args.n);
  const auto bytes = [&](auto, auto traits) {
    using Traits = decltype(traits);
    return backward_blocks<Traits>(args.batch) * Traits::kMatrices *
           tape_elements<Traits>(shape, args.schedule.steps) *
           static_cast<int64_t>(sizeof(typename Traits::Element));
  };
  return with_instance<true>(args.dtype, args.allow_tf32, args.m, args.n,
                             current_device().capability, bytes, int64_t{0});
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
  return with_instance<false>(args.dtype, args.allow_tf32, args.m, args.n,
                              current_device().capability, start, cudaErrorInvalidValue);
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
  return with_instance<true>(args.dtype, args.allow_tf32, args.m, args.n,
                             current_device().capability, start, cudaErrorInvalidValue);
}

}  // namespace atlas::kernels::cuda
