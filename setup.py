"""Builds atlas_ext/_C.abi3.so against the torch that is installed; everything else is in pyproject.toml."""

import os
import sys
from glob import glob
from pathlib import Path

from setuptools import setup

TYPE_THIS = "pip install 'torch>=2.10' setuptools && pip install --no-build-isolation ."
try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError:
    sys.exit(f"atlas_ext is built against the torch you already have; type: {TYPE_THIS}")
if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 10):
    sys.exit(f"atlas_ext needs torch >= 2.10, found {torch.__version__}; type: {TYPE_THIS}")

# Decided by what can be compiled, not by what this machine could run: builders often have no GPU.
with_cuda = torch.version.cuda is not None and CUDA_HOME is not None
definitions = [
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    "-DPy_LIMITED_API=0x030A0000",
    *(["-DUSE_CUDA"] if with_cuda else []),
]
optimise = ["-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math"]
torch_headers = ["-isystem", str(Path(torch.__file__).parent / "include")]  # their warnings are not ours
cxx_flags = [*optimise, *definitions, *torch_headers, "-g0", "-fvisibility=hidden", "-Wall", "-Wextra"]
sources = {"csrc/library.cpp", *glob("csrc/ops/*.cpp"), *glob("csrc/kernels/cpu/*.cpp")}
include_dirs = ["csrc"]
if with_cuda:
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0+PTX")
    definitions.append(f'-DATLAS_EXT_CUDA_ARCHS="{os.environ["TORCH_CUDA_ARCH_LIST"]}"')
    sources |= set(glob("csrc/kernels/cuda/*.cu"))
    # Toolkits without cuBLAS and cuSPARSE headers: the CUDA torch wheel brings them.
    include_dirs += glob(str(Path(torch.__file__).parents[1] / "nvidia" / "cu*" / "include"))
else:
    sources -= set(glob("csrc/ops/*_cuda.cpp"))
nvcc_flags = ["-O3", "-std=c++17", *definitions, "-Xptxas", "-v", "-Xcompiler", "-fPIC"]

extension = (CUDAExtension if with_cuda else CppExtension)(
    "atlas_ext._C",
    sorted(sources),
    include_dirs=[str(Path(folder).absolute()) for folder in include_dirs],
    depends=sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.cuh", recursive=True)),
    extra_compile_args={"cxx": cxx_flags, "nvcc": nvcc_flags},
    extra_link_args=["-Wl,--strip-all"],
    py_limited_api=True,
)
setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
