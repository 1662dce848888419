"""`python -m atlas_ext`: versions, build, devices and the kernel each op takes there."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

import atlas_ext

OPERATORS = ("poly_features", "newton_schulz", "omega_rule", "omega_rule_update")


def main() -> None:
    built = dict(line.split("=", 1) for line in torch.ops.atlas_ext.build_info().splitlines())
    print(f"atlas_ext {atlas_ext.__version__} at {atlas_ext.__path__[0]}")
    print(f"torch     {torch.__version__} (CUDA {torch.version.cuda or 'none'})")
    print(f"python    {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"built by  g++ {built['compiler']}")
    print(f"built for CPU: {built['cpu_isas']}")
    print(f"built for CUDA: {describe_cuda_build(built)}")
    print()
    isa = built["cpu_isa"]
    print(f"CPU: {torch.get_num_threads()} threads, {isa} (ATLAS_EXT_CPU_ISA chooses another)")
    print_operators(OPERATORS, f"C++ kernel, {isa}")
    if not torch.cuda.is_available():
        print("CUDA: no device that this torch can use")
    for device in range(torch.cuda.device_count()):
        describe_cuda_device(device, built["cuda_operators"].split())


def describe_cuda_build(built: dict[str, str]) -> str:
    if "cuda_runtime" not in built:
        return "no (built with a CPU torch, or without nvcc)"
    listed = built["cuda_architectures"].split(",")
    names = " ".join(f"sm_{int(number) // 10}" for number in listed)
    return f"{names}, runtime {built['cuda_runtime']}"


def describe_cuda_device(device: int, operators: Sequence[str]) -> None:
    properties = torch.cuda.get_device_properties(device)
    code = torch.ops.atlas_ext.cuda_code_architecture(device)
    capability = f"sm_{properties.major}{properties.minor}"
    memory = f"{properties.total_memory / 2**30:.0f} GiB"
    print(f"CUDA {device}: {properties.name}, {capability}, {memory}")
    kernel = f"CUDA kernel, sm_{code} code" if code else "none: this build has no code for it"
    print_operators(operators, kernel)


def print_operators(available: Sequence[str], kernel: str) -> None:
    for name in OPERATORS:
        print(f"  {name:<18} {kernel if name in available else 'none: raises an error here'}")


if __name__ == "__main__":
    main()
