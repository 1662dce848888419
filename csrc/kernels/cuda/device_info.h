#pragma once

// What the CUDA side of this library was compiled for, and what it finds. Callable without a GPU.
namespace atlas::kernels::cuda {

// Compute capabilities this library holds machine code for, comma separated: "750,800,900".
const char* compiled_architectures();

// The CUDA runtime it was compiled against, as 1000 * major + 10 * minor.
int compiled_runtime_version();

// The capability whose code device `device` would run, as 10 * major + minor: below the device's
// own where an older or a PTX build serves it, and 0 where no code in this library can run there.
int code_architecture(int device);

}  // namespace atlas::kernels::cuda
