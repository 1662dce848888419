"""Builds atlas_ext/_C.abi3.so against the torch that is installed; pyproject.toml has the rest."""

import os
import re
import subprocess
import sys
from glob import glob
from pathlib import Path

from setuptools import setup

TYPE_THIS = "pip install 'torch>=2.10' setuptools && pip install --no-build-isolation ."
try:
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension
except ImportError:
    sys.exit(f"atlas_ext is compiled against the torch you have, so type: {TYPE_THIS}")
if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 10):
    sys.exit(f"atlas_ext needs torch >= 2.10, found {torch.__version__}; type: {TYPE_THIS}")

# Decided by what can be compiled, not by what this machine could run: builders often lack a GPU.
nvcc = Path(CUDA_HOME or "") / "bin" / "nvcc"
with_cuda = torch.version.cuda is not None and nvcc.is_file()
if torch.version.cuda is not None and not with_cuda:
    print("atlas_ext: no nvcc (set CUDA_HOME): building the CPU operators alone", file=sys.stderr)

definitions = ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-DPy_LIMITED_API=0x030A0000"]
common_flags = ["-O3", "-std=c++17"]
warnings = ["-Wall", "-Wextra", "-isystem", str(Path(torch.__file__).parent / "include")]
sources = {"csrc/library.cpp", *glob("csrc/ops/*.cpp"), *glob("csrc/kernels/cpu/*.cpp")}
include_dirs, library_dirs = [str(Path("csrc").absolute())], []
if with_cuda:
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;9.0+PTX")
    definitions.append("-DUSE_CUDA")
    sources |= set(glob("csrc/kernels/cuda/*.cu"))
    # nvcc on PATH may be a wrapper outside its toolkit, and a toolkit may lack the cuBLAS and
    # cuSPARSE headers: ask nvcc for its folder, and take what is missing from the torch wheel.
    dry_run = subprocess.run([nvcc, "--dryrun", "-E", "x.cu"], capture_output=True, text=True)
    toolkit = re.search(r"TOP=(\S+)", dry_run.stderr)
    if toolkit:
        include_dirs.append(toolkit[1] + "/include")
        library_dirs.append(toolkit[1] + "/lib64")
    include_dirs += glob(str(Path(torch.__file__).parents[1] / "nvidia" / "cu[0-9]*" / "include"))
else:
    sources -= set(glob("csrc/ops/*_cuda.cpp"))

numerics = ["-fno-math-errno", "-fno-trapping-math"]
visibility = ["-g0", "-fvisibility=hidden"]
extension = (CUDAExtension if with_cuda else CppExtension)(
    "atlas_ext._C",
    sorted(sources),
    include_dirs=include_dirs,
    library_dirs=library_dirs,
    depends=["setup.py", *sorted(glob("csrc/**/*.*h", recursive=True))],
    extra_compile_args={
        "cxx": [*common_flags, *numerics, *visibility, *definitions, *warnings],
        "nvcc": [*common_flags, *definitions, "-Xptxas", "-v"],
    },
    extra_link_args=["-Wl,--strip-all"],
    py_limited_api=True,
)
setup(
    ext_modules=[extension],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
