"""Calls that together launch every instance of the CUDA kernels that the launchers can choose.

`python tests/cuda_instances.py DIRECTORY` records their launches, values and gradients, in a folder
for each group: emulated devices of capability 75 and 80, and float32 in tf32.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import atlas_ext
from atlas_ext import reference, testing
from atlas_ext._load import load_emulated

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# The shorter side decides the tile, 16 to 128; at 72 x 100 even f16's backward fits an sm_80.
MATRICES = ((5, 20, 7), (3, 24, 40), (1, 64, 48), (1, 72, 100))
LANES = (5, 12, 19)  # K: 8, 16 and 32 lanes a row
# Capability and float32 precision.
GROUPS = {"sm_75": (75, "highest"), "sm_80": (80, "highest"), "tf32": (80, "high")}


@dataclass(frozen=True)
class Call:
    """One call of an operator; degree 0: newton_schulz."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    degree: int = 0
    precision: str = "highest"

    @property
    def id(self) -> str:
        name = f"poly{self.degree}" if self.degree else f"ns-{self.precision}"
        return f"{name}-{str(self.dtype)[6:]}-{'x'.join(map(str, self.shape))}"

    def inputs(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1)
        if not self.degree:
            return {"x": testing.conditioned(generator, *self.shape).to(self.dtype)}
        scales = testing.uniform(generator, 0.5, 1.5, self.degree + 1).float()
        return {"x": testing.normal(generator, *self.shape).to(self.dtype), "scales": scales}

    def run(self, inputs: dict[str, Tensor], operators: Any = atlas_ext) -> dict[str, Tensor]:
        """Output and gradients, by the operators or by the reference."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in inputs.items()}
        if self.degree:
            out = operators.poly_features(leaves["x"], self.degree, leaves["scales"])
        else:
            out = operators.newton_schulz(leaves["x"])
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
        grads = torch.autograd.grad(out, tuple(leaves.values()), grad.to(self.dtype).to(out.dtype))
        return {"out": out.detach(), **dict(zip(leaves, grads, strict=True))}

    def run_emulated(self, capability: int) -> dict[str, Tensor]:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)
        try:
            with testing.emulated(order="random", capability=capability):
                return self.run(self.inputs())
        finally:
            torch.set_float32_matmul_precision(before)

    def run_reference(self) -> dict[str, Tensor]:
        return self.run({k: v.double() for k, v in self.inputs().items()}, reference)


def calls(group: str) -> Iterator[Call]:
    """At 75 and in tf32 what runs there otherwise than elsewhere: Newton-Schulz."""
    for dtype in DTYPES if group != "tf32" else DTYPES[:1]:
        for shape in MATRICES:
            yield Call(dtype, shape, precision=GROUPS[group][1])
        for degree in range(1, 5) if group == "sm_80" else ():
            for k in LANES:
                yield Call(dtype, (5, k), degree)


def record(directory: Path, group: str) -> int:
    """Runs all calls of a group with their launches recorded; how many calls."""
    module = load_emulated()
    directory.mkdir(parents=True, exist_ok=True)
    module.trace(directory)
    try:
        done = [call.run_emulated(GROUPS[group][0]) for call in calls(group)]
    finally:
        module.trace(None)
    return len(done)


def launches(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "trace.jsonl").read_text().splitlines()]


@lru_cache
def short_name(mangled: str) -> str:
    """`_ZN5atlas...` as `newton_schulz_kernel<FloatTile, 64, float>`."""
    found = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True)
    name = found.stdout.strip().removeprefix("void ").replace("atlas::kernels::cuda::", "")
    return re.sub(r"\(.*", "", name)


def compiled_instances() -> set[str]:
    """The kernels in the emulated library, by their mangled names, which are nvcc's too."""
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", load_emulated().__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return set(re.findall(r"\b[TW] (_ZN5atlas7kernels4cuda\w+_kernel(?:I|E)\w+)$", listed, re.M))


if __name__ == "__main__":
    for name in GROUPS:
        folder = Path(sys.argv[1]) / name
        print(f"{name}: {record(folder, name)} calls, {len(launches(folder))} launches")
