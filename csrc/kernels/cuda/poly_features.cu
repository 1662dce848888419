#include <algorithm>

#include "kernels/cuda/capabilities.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/poly_features.cuh"
#include "kernels/cuda/poly_features.h"

namespace atlas::kernels::cuda {

ATLAS_KERNEL void __launch_bounds__(kWarp)
    sum_partials_kernel(const float* __restrict__ partials, float* __restrict__ out, int64_t blocks,
                        int columns) {
  float sum = 0;
  for (int64_t i = lane_id(); i < blocks; i += kWarp) sum += partials[i * columns + blockIdx.x];
  sum = group_sum(sum);
  if (lane_id() == 0) out[blockIdx.x] = sum;
}

namespace {

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Lanes of one row: no more than the row has variables, in powers of two.
int row_lanes(int dim) { return dim > 16 ? 32 : dim > 8 ? 16 : 8; }

int64_t row_state_bytes(int dim) { return 2 * static_cast<int64_t>(dim) * sizeof(float); }

// Where the row sums of the backward pass live, and how many blocks it takes.
struct BackwardPlan {
  int64_t blocks;
  int64_t shared_bytes;
  int64_t scratch;  // floats of device memory
};

// As many blocks as run at a time, by registers and shared memory. Where sums are in device memory,
// four a multiprocessor: they bound the scratch.
BackwardPlan backward_plan(int64_t rows, int dim, int degree, const Device& device) {
  constexpr int64_t kStatic = 1 << 10, kReserved = kStatic + 256;
  const int64_t at_a_time = kPolyThreads / row_lanes(dim);
  const int64_t states = at_a_time * row_state_bytes(dim);
  const int64_t sums = at_a_time * poly_row_sums(dim, degree) * static_cast<int64_t>(sizeof(float));
  const bool fits = states + sums + kStatic <= device.shared_bytes / 2;  // two blocks at least
  const int64_t shared_bytes = fits ? states + sums : states;
  const int64_t most = fits ? poly_backward_blocks(degree, device.capability) : 4;
  const int64_t by_shared = (device.shared_bytes + kStatic) / (shared_bytes + kReserved);
  const int64_t resident = std::max<int64_t>(std::min(most, by_shared), 1);
  const int64_t blocks = std::min(ceil_divide(rows, at_a_time), resident * device.multiprocessors);
  return {blocks, shared_bytes, fits ? 0 : blocks * at_a_time * poly_row_sums(dim, degree)};
}

template <class T, int kDegree>
cudaError_t forward(const PolyFeatures& args, cudaStream_t stream) {
  const int64_t features = monomial_count(args.dim + 1, kDegree);
  const int64_t groups = ceil_divide(args.rows, kPackWidth<T>);
  const int64_t columns = ceil_divide(features, kPolyThreads);
  // Enough blocks to fill the device, and no more: a thread finds its monomials only once.
  const int64_t wanted = ceil_divide(16 * current_device().multiprocessors, columns);
  int64_t y = groups < wanted ? groups : wanted;
  y = y < 65535 ? y : 65535;
  return launch<poly_features_kernel<T, kDegree>>(
      dim3(static_cast<unsigned>(columns), static_cast<unsigned>(y)), dim3(kPolyThreads), 0, stream,
      static_cast<const T*>(args.x), args.scales, static_cast<T*>(args.out), args.rows, args.dim,
      features);
}

template <class T, int kDegree, int kLanes>
cudaError_t backward_lanes(const PolyFeaturesBackward& args, cudaStream_t stream) {
  const BackwardPlan plan = backward_plan(args.rows, args.dim, kDegree, current_device());
  const cudaError_t status = launch<poly_features_backward_kernel<T, kDegree, kLanes>>(
      dim3(static_cast<unsigned>(plan.blocks)), dim3(kPolyThreads), plan.shared_bytes, stream,
      static_cast<const T*>(args.grad), static_cast<const T*>(args.x), args.scales,
      static_cast<T*>(args.grad_x), args.partials, plan.scratch > 0 ? args.scratch : nullptr,
      args.rows, args.dim, monomial_count(args.dim + 1, kDegree));
  if (status != cudaSuccess || args.grad_scales == nullptr) return status;
  return launch<sum_partials_kernel>(dim3(kDegree + 1), dim3(kWarp), 0, stream, args.partials,
                                     args.grad_scales, plan.blocks, kDegree + 1);
}

template <class T, int kDegree>
cudaError_t backward(const PolyFeaturesBackward& args, cudaStream_t stream) {
  switch (row_lanes(args.dim)) {
    case 8:
      return backward_lanes<T, kDegree, 8>(args, stream);
    case 16:
      return backward_lanes<T, kDegree, 16>(args, stream);
    default:
      return backward_lanes<T, kDegree, 32>(args, stream);
  }
}

template <class T, class Args>
cudaError_t by_degree(const Args& args, cudaStream_t stream) {
  constexpr bool kForward = sizeof(Args) == sizeof(PolyFeatures);
  switch (args.degree) {
    case 1:
      if constexpr (kForward)
        return forward<T, 1>(args, stream);
      else
        return backward<T, 1>(args, stream);
    case 2:
      if constexpr (kForward)
        return forward<T, 2>(args, stream);
      else
        return backward<T, 2>(args, stream);
    case 3:
      if constexpr (kForward)
        return forward<T, 3>(args, stream);
      else
        return backward<T, 3>(args, stream);
    default:
      if constexpr (kForward)
        return forward<T, 4>(args, stream);
      else
        return backward<T, 4>(args, stream);
  }
}

template <class Args>
cudaError_t by_dtype(const Args& args, cudaStream_t stream) {
  switch (args.dtype) {
    case Dtype::bf16:
      return by_degree<bf16>(args, stream);
    case Dtype::f16:
      return by_degree<f16>(args, stream);
    default:
      return by_degree<float>(args, stream);
  }
}

}  // namespace

PolyFeaturesPlan poly_features_backward_plan(int dim, int degree, int capability) {
  const Device device{capability, shared_kibibytes(capability) << 10, 1};
  const BackwardPlan plan = backward_plan(1, dim, degree, device);
  return {row_lanes(dim), kPolyThreads, plan.shared_bytes, plan.scratch == 0};
}

cudaError_t poly_features(const PolyFeatures& args, cudaStream_t stream) {
  return by_dtype(args, stream);
}

cudaError_t poly_features_backward(const PolyFeaturesBackward& args, cudaStream_t stream) {
  return by_dtype(args, stream);
}

int64_t poly_features_blocks(int64_t rows, int dim, int degree) {
  return backward_plan(rows, dim, degree, current_device()).blocks;
}

int64_t poly_features_scratch(int64_t rows, int dim, int degree) {
  return backward_plan(rows, dim, degree, current_device()).scratch;
}

}  // namespace atlas::kernels::cuda
