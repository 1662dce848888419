"""Calls that together launch every instance of the CUDA kernels that the launchers can choose.

`python tests/cuda_instances.py DIRECTORY` records their launches, values and gradients, in a folder
for each group: emulated devices of capability 75 and 80, and float32 in tf32.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
TF32_TOLERANCE = 3e-2
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
        with on_device(capability, self.precision):
            return self.run(self.inputs())

    def run_reference(self) -> dict[str, Tensor]:
        return self.run({k: v.double() for k, v in self.inputs().items()}, reference)


# Cases of the registry by what they exercise: of omega_rule the dual form (the kernels' last
# argument is false), then Newton-Schulz (true); features, deep memories and packed sequences.
OMEGA_CASES = {
    "omega_rule": ("ragged", "gated_features", "muon_tall", "gated_muon_chunk"),
    "omega_rule_update": ("features", "mlp", "gated_muon"),
    "exp_omega_rule": ("ragged", "packed", "packed_states"),
    "exp_omega_rule_update": ("momentum", "mlp", "lanes"),
}


def typical(name: str, key: int, **options: Any) -> testing.Case:
    """A chunk and two tokens of one head, at a size that models have: what the table shows."""
    hidden, memory, degree = options.pop("F", 0), options.pop("memory"), options.get("degree")
    features = math.comb(key + degree, degree) if degree else key

    def build(generator: torch.Generator) -> testing.Inputs:
        sizes = {"H": 1, "K": key, "V": key, "W": 16}
        inputs = testing.omega_tensors(generator, (1, 66), theta=True, **sizes)
        inputs["eta"] *= 0.02  # long chunks of correlated keys are stable at small steps only
        inputs["weights"] = testing.memory_weights(
            generator, 1, V=key, D=features, F=hidden, memory=memory
        )
        return inputs

    muon = "ns_steps" in options
    return testing.Case("omega_rule", name, "typical", build, options, orthogonalised=muon)


TYPICAL = (
    typical("typical", 64, memory="linear"),
    typical("typical_muon", 16, memory="gated_mlp", F=64, degree=2, ns_steps=1, ns_every=64),
)
# Blocks share its chunks where a block has this much shared memory.
TEAM_KIB = 6
TEAM = testing._omega("small_team", "", (1, 20), H=1, K=8, V=8, F=40, W=5, memory="gated_mlp",
                      theta=True, residual=True, positions=(1,), chunk_size=20)  # fmt: skip
# Its heads share the only multiprocessor of a device with this much shared memory.
TWO_HEADS_KIB = 40
TWO_HEADS = testing._omega("two_heads", "", (1, 20), H=2, K=8, V=8, F=72, W=5, memory="mlp",
                           theta=True, chunk_size=20)  # fmt: skip


@dataclass(frozen=True)
class OmegaCall:
    """A case in one dtype; values, and gradients where the operator has a backward on CUDA."""

    case: testing.Case
    dtype: torch.dtype
    precision: str = "highest"
    shared_kib: int = 0
    multiprocessors: int = 108

    @property
    def id(self) -> str:
        return f"{self.case.id}-{self.precision}-{str(self.dtype)[6:]}"

    @property
    def tolerance(self) -> float:
        return TF32_TOLERANCE if self.precision == "high" else self.case.tolerance(self.dtype)

    def _run(self, inputs: testing.Inputs, function: Any = None) -> dict[str, Tensor]:
        names = self.case.differentiable(inputs)
        inputs = testing.require_grad(inputs, names)
        outputs = self.case.run(inputs, function)  # checkpoints are saved
        found = {name: output.detach() for name, output in outputs.items()}
        if not names or not testing.has_emulated_kernel(f"{self.case.op}_backward"):
            return found
        rounded = {name: output.to(self._held_in(name, output)) for name, output in found.items()}
        grads = testing.gradients(outputs, inputs, names, testing.cotangents(rounded))
        return found | {f"grad_{name}": grad for name, grad in grads.items()}

    def _held_in(self, name: str, output: Tensor) -> torch.dtype:
        if not output.is_floating_point():
            return output.dtype
        own = name == "o" or name.endswith(("_tail", "keys"))
        return self.dtype if own else torch.float32

    def run_emulated(self, capability: int) -> dict[str, Tensor]:
        with on_device(capability, self.precision, self.shared_kib, self.multiprocessors):
            return self._run(self.case.inputs(self.dtype))

    def run_reference(self) -> dict[str, Tensor]:
        inputs = testing.wide_inputs(self.case.inputs(self.dtype))
        return self._run(inputs, getattr(reference, self.case.op))


@contextmanager
def on_device(
    capability: int, precision: str, shared_kib: int = 0, multiprocessors: int = 108
) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        with testing.emulated(order="random", capability=capability) as module:
            module.set_device(capability, multiprocessors, shared_kib)
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def calls(group: str) -> Iterator[Call | OmegaCall]:
    """At 75 and in tf32 what runs there otherwise than elsewhere: products."""
    precision = GROUPS[group][1]
    for dtype in DTYPES if group != "tf32" else DTYPES[:1]:
        for shape in MATRICES:
            yield Call(dtype, shape, precision=precision)
        for degree in range(1, 5) if group == "sm_80" else ():
            for k in LANES:
                yield Call(dtype, (5, k), degree)
    yield from (OmegaCall(case, dtype, precision) for case, dtype in omega_cases(group))
    for dtype in DTYPES[:2] if group == "sm_80" else DTYPES[:1]:
        yield team_call(dtype, precision)
        yield two_heads_call(dtype, precision)


def team_call(dtype: torch.dtype, precision: str) -> OmegaCall:
    return OmegaCall(TEAM, dtype, precision, TEAM_KIB)


def two_heads_call(dtype: torch.dtype, precision: str) -> OmegaCall:
    return OmegaCall(TWO_HEADS, dtype, precision, TWO_HEADS_KIB, multiprocessors=1)


def omega_cases(group: str) -> Iterator[tuple[testing.Case, torch.dtype]]:
    """float32 multiplies as it is below "high", bfloat16 in tf32 from sm_80 on."""
    for op, names in OMEGA_CASES.items():
        if not testing.has_emulated_kernel(op):
            continue
        for case in testing.cases(op):
            for dtype in DTYPES[:2] if case.name in names and group == "sm_80" else DTYPES[:1]:
                if case.name in names:
                    yield case, dtype
    for case in TYPICAL if group == "sm_80" else ():
        yield from ((case, dtype) for dtype in DTYPES[:2])


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


ARITHMETICS = ("simple", "tf32", "split_tf32")  # enum class Arithmetic (block.cuh)


@lru_cache
def short_name(mangled: str) -> str:
    """`_ZN5atlas...` as `newton_schulz_kernel<FloatTile, 64, float>`, with names of enumerators."""
    found = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True)
    name = found.stdout.strip().removeprefix("void ").replace("atlas::kernels::cuda::", "")
    name = re.sub(r"\(Arithmetic\)(\d)", lambda found: ARITHMETICS[int(found[1])], name)
    return re.sub(r"\(.*", "", name)


def compiled_instances() -> set[str]:
    """The kernels in the emulated library, by their mangled names, which are nvcc's too."""
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", load_emulated().__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    kernel = r"_ZN5atlas7kernels4cuda\d+[a-z_]+_kernel(?:I|E)\w+"
    return set(re.findall(rf"\b[TW] ({kernel})$", listed, re.M))


if __name__ == "__main__":
    for name in GROUPS:
        folder = Path(sys.argv[1]) / name
        print(f"{name}: {record(folder, name)} calls, {len(launches(folder))} launches")
