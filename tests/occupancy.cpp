// Blocks per multiprocessor by the toolkit's own calculator. Lines of input: capability, registers,
// static and dynamic shared bytes, threads; a line of output for each.
#include <cuda_occupancy.h>

#include <cstdio>

namespace {

// CUDA programming guide, table of compute capabilities.
cudaOccDeviceProp device(int capability) {
  cudaOccDeviceProp device;
  device.computeMajor = capability / 10;
  device.computeMinor = capability % 10;
  device.maxThreadsPerBlock = 1024;
  device.maxThreadsPerMultiprocessor = capability == 75 ? 1024 : capability == 86 ? 1536 : 2048;
  device.regsPerBlock = device.regsPerMultiprocessor = 65536;
  device.warpSize = 32;
  device.sharedMemPerBlock = 48 << 10;
  device.sharedMemPerMultiprocessor =
      (capability == 75 ? 64 : capability == 80 ? 164 : capability == 86 ? 100 : 228) << 10;
  device.numSms = 1;
  device.sharedMemPerBlockOptin =
      device.sharedMemPerMultiprocessor - (capability == 75 ? 0 : 1 << 10);
  device.reservedSharedMemPerBlock = capability == 75 ? 0 : 1 << 10;
  return device;
}

}  // namespace

int main() {
  int capability, registers, threads;
  size_t fixed, dynamic;
  while (std::scanf("%d %d %zu %zu %d", &capability, &registers, &fixed, &dynamic, &threads) == 5) {
    const cudaOccDeviceProp properties = device(capability);
    cudaOccFuncAttributes function;
    function.maxThreadsPerBlock = threads;
    function.numRegs = registers;
    function.sharedSizeBytes = fixed;
    function.partitionedGCConfig = PARTITIONED_GC_OFF;
    function.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    function.maxDynamicSharedSizeBytes = properties.sharedMemPerBlockOptin - fixed;
    function.numBlockBarriers = 1;
    const cudaOccDeviceState state;
    cudaOccResult result;
    const cudaOccError status = cudaOccMaxActiveBlocksPerMultiprocessor(
        &result, &properties, &function, &state, threads, dynamic);
    std::printf("%d\n", status == CUDA_OCC_SUCCESS ? result.activeBlocksPerMultiprocessor : -1);
  }
}
