"""`python -m atlas_ext`: versions, build, devices and the kernel each op takes there."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch

import atlas_ext
from atlas_ext._load import load_emulated

OPERATORS = (
    *("poly_features", "newton_schulz", "omega_rule", "omega_rule_update"),
    *("exp_omega_rule", "exp_omega_rule_update"),
)
CAPABILITIES = {75: "sm_75", 80: "sm_80", 86: "sm_86/89", 90: "sm_90", 100: "sm_100"}
PRECISIONS = {
    'float32 "highest"': ("float32", False),
    'float32 "high"': ("float32", True),
    "bfloat16": ("bfloat16", True),
    "float16": ("float16", True),
}
MATRICES = ((16, 16), (64, 16), (64, 64), (153, 64), (256, 64), (128, 128), (512, 512))
FEATURES = ((64, 2), (64, 3))  # K, degree


class OmegaSizes(NamedTuple):
    """What decides how the Omega rule's kernels run, in the order of `cuda_plan`."""

    K: int
    V: int
    F: int = 0  # 0: a linear memory
    W: int = 16
    C: int = 64
    degree: int = 0  # 0: keys as they are
    matrices: int = 1  # 2: MLP, 3: gated MLP
    momentum: int = 1
    ns_steps: int = 0
    ns_every: int = 1

    @property
    def title(self) -> str:
        memory = ("linear", "mlp", "gated mlp")[self.matrices - 1]
        hidden = f", F = {self.F}" if self.F else ""
        lift = f", degree {self.degree}" if self.degree else ""
        schulz = f", {self.ns_steps} Newton-Schulz steps" if self.ns_steps else ""
        schulz += f" every {self.ns_every} tokens" if self.ns_steps and self.ns_every > 1 else ""
        rest = "" if self.momentum else ", no momentum"
        return f"{memory} K = {self.K}, V = {self.V}{hidden}{lift}, W = {self.W}, C = {self.C}" + (
            schulz + rest
        )


OMEGA_OPERATORS = ("omega_rule", "omega_rule_backward", "omega_rule_update")
EXP_OMEGA_OPERATORS = tuple(f"exp_{op}" for op in OMEGA_OPERATORS)
OMEGA = (
    OmegaSizes(64, 64),
    OmegaSizes(32, 32, degree=2),
    OmegaSizes(64, 64, F=64, matrices=2),
    OmegaSizes(64, 64, F=128, matrices=2),
    OmegaSizes(64, 64, F=256, matrices=2),
    OmegaSizes(64, 64, F=256, matrices=3),
    OmegaSizes(16, 16, F=64, degree=2, matrices=2),
    OmegaSizes(16, 16, F=64, degree=2, matrices=2, ns_steps=5, ns_every=16),
    OmegaSizes(16, 16, F=64, degree=2, matrices=3, ns_steps=5, ns_every=16),
)
EXP_OMEGA = (
    OmegaSizes(64, 64),
    OmegaSizes(16, 16, F=64, matrices=2),
    OmegaSizes(64, 64, F=256, matrices=2),
    OmegaSizes(64, 64, F=256, matrices=3),
)


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
    print()
    print_plans("cuda_runtime" in built)


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
        print(f"  {name:<21} {kernel if name in available else 'none: raises an error here'}")


def plan_source(with_cuda: bool) -> tuple[str, Callable[..., str]] | None:
    """Whose launchers answer, and the operator that asks them; None: there are none."""
    if with_cuda:
        return "this build", torch.ops.atlas_ext.cuda_plan
    try:
        load_emulated()
    except ImportError:
        return None
    plan = getattr(torch.ops.atlas_ext_emulated, "cuda_plan", None)  # an old build has none
    return None if plan is None else ("the emulated library", plan)


def print_plans(with_cuda: bool) -> None:
    if not with_cuda:
        print("CUDA kernels: this build holds none")
    source = plan_source(with_cuda)
    if source is None:
        print("  (make emulate builds them for the CPU; then they are listed here)")
        return
    whose, plan = source
    print(f"CUDA kernels by device, as the launchers of {whose} choose (shared memory per block;")
    print("of the Omega rule with two (sequence, head) pairs for each multiprocessor):")
    for title, cells in plans(plan):
        groups = list(merged(cells))
        print(f"  {title}" + (f": {groups[0][1]}" if len(groups) == 1 else ""))
        for devices, text in groups if len(groups) > 1 else ():
            print(f"    {devices:<30} {text}")


def plans(plan: Callable[..., str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Titles of calls, and what `plan` answers for every device; precisions alike share a title."""
    for features in FEATURES:
        for op in ("poly_features", "poly_features_backward"):
            asked = {device: (op, "float32", features, False, device) for device in CAPABILITIES}
            cells = {CAPABILITIES[device]: plan(*call) for device, call in asked.items()}
            yield "{} K = {}, degree {}".format(op, *features), cells
    for m, n in MATRICES:
        for op in ("newton_schulz", "newton_schulz_backward"):
            yield from by_precision(plan, op, (m, n), f"[{m}, {n}]")
    for sizes in OMEGA:
        for op in OMEGA_OPERATORS:
            yield from by_precision(plan, op, sizes, sizes.title)
    for sizes in EXP_OMEGA:
        for op in EXP_OMEGA_OPERATORS:
            yield from by_precision(plan, op, sizes, sizes.title)


def by_precision(
    plan: Callable[..., str], op: str, sizes: Sequence[int], title: str
) -> Iterator[tuple[str, dict[str, str]]]:
    found: dict[str, dict[str, str]] = {}
    for name, (dtype, tf32) in PRECISIONS.items():
        asked = {device: (op, dtype, sizes, tf32, device) for device in CAPABILITIES}
        found[name] = {CAPABILITIES[device]: plan(*call) for device, call in asked.items()}
    for cells, alike in groupby(found, key=found.__getitem__):
        yield f"{op} {title}, {', '.join(alike)}", cells


def merged(cells: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Neighbouring devices with one answer on one line."""
    for text, group in groupby(cells, key=cells.__getitem__):
        yield ", ".join(group), text


if __name__ == "__main__":
    main()
