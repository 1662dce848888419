"""What `bench.run --device cuda|emulated` compares: our operators, eager PyTorch, the reference."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

import atlas_ext
from atlas_ext import reference, testing
from bench import cuda_work, eager, omega_work
from bench.cases import rule
from bench.cases.base import OperatorCase
from bench.timing import DIRECTIONS, Inputs, Operator, map_inputs

MODULES: dict[str, Any] = {"ours": atlas_ext, "eager": eager, "reference": reference}
# Relative errors that are allowed beside four times those of eager PyTorch in the same dtype;
# eager on the CPU has no tf32.
ALLOWED = {"float32": 2e-5, "float32 high": 5e-2, "bfloat16": 2e-2, "float16": 5e-3}
ALLOWED_WITH_NEWTON_SCHULZ = ALLOWED | {"float32": 5e-4, "bfloat16": 1e-1, "float16": 5e-2}


@dataclass(frozen=True)
class CudaCase:
    """newton_schulz or poly_features."""

    op: str
    shape: tuple[int, ...]  # the first size is the batch
    check_batch: int = 3

    @property
    def name(self) -> str:
        return f"{self.op} {list(self.shape)}"

    def inputs(self, dtype: torch.dtype, device: str, batch: int | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        make = testing.conditioned if self.op == "newton_schulz" else testing.normal
        # One matrix often over: condition numbers are made by the host's svd.
        x = make(generator, min(batch or self.shape[0], 64), *self.shape[1:])
        x = x.repeat(-(-(batch or self.shape[0]) // len(x)), *[1] * (x.dim() - 1))
        return x[: batch or self.shape[0]].to(device=device, dtype=dtype)

    def tensors(self, dtype: torch.dtype, device: str, checked: bool = False) -> Inputs:
        return {"x": self.inputs(dtype, device, self.check_batch if checked else None)}

    def operator(self, who: str) -> Operator:
        return lambda inputs: getattr(MODULES[who], self.op)(inputs["x"])

    def allowed(self, dtype: str) -> float:
        return ALLOWED[dtype]

    def bound(self, dtype: str) -> str:
        """Which ceiling a share is of."""
        return "copy" if self.op == "poly_features" else dtype

    def directions(self, device: str) -> tuple[str, ...]:
        return DIRECTIONS

    def record(self) -> dict[str, Any]:
        return asdict(self)

    def work(self, dtype: str, tf32: bool, backward: bool) -> cuda_work.Work:
        device = cuda_work.DEVICES["h100"]
        if self.op == "poly_features":
            return cuda_work.poly_features(*self.shape, 2, dtype, device, backward=backward)
        return cuda_work.newton_schulz(*self.shape, dtype, device, tf32=tf32, backward=backward)


@dataclass(frozen=True)
class OmegaCase:
    """A case of the CPU's benchmark. Eager PyTorch takes float32, which its states need."""

    case: OperatorCase
    rule: omega_work.OmegaRule
    op: str = "omega_rule"

    @property
    def name(self) -> str:
        return self.case.name

    def tensors(self, dtype: torch.dtype, device: str, checked: bool = False) -> Inputs:
        """Checked on the emulated backend: one head of two chunks, or of one with Newton-Schulz."""
        length = self.case.check_length if checked else self.case.length
        alone = checked and device == "cpu"
        if alone:
            length = (1 if self.rule.muon else 2) * self.rule.C
        inputs = self.case.inputs(length)
        held = {
            name: value.to(dtype) if name in ("q", "k", "v") else value
            for name, value in inputs.items()
        }
        if alone:
            held = {
                n: x[:, :, :1] if n != "weights" else (*(w[:1] for w in x),)
                for n, x in held.items()
            }
        return map_inputs(lambda tensor: tensor.to(device), held)

    def operator(self, who: str) -> Operator:
        if who != "eager":
            return self.case.ours if who == "ours" else self.case.reference
        theirs = [rival.operator for rival in self.case.rivals if rival.operator][-1]
        return lambda inputs: theirs(map_inputs(Tensor.float, inputs)).to(inputs["q"].dtype)

    def allowed(self, dtype: str) -> float:
        return (ALLOWED_WITH_NEWTON_SCHULZ if self.rule.muon else ALLOWED)[dtype]

    def bound(self, dtype: str) -> str:
        return "float32" if dtype == "float32" else "float32 high"

    def directions(self, device: str) -> tuple[str, ...]:
        """None without a forward; the backward as soon as there is one."""
        if device == "cuda":
            info = dict(x.split("=", 1) for x in torch.ops.atlas_ext.build_info().splitlines())
            return DIRECTIONS if self.op in info["cuda_operators"].split() else ()
        if not testing.has_emulated_kernel(self.op):
            return ()
        return DIRECTIONS if testing.has_emulated_kernel(f"{self.op}_backward") else DIRECTIONS[:1]

    def record(self) -> dict[str, Any]:
        return {"op": self.op, "name": self.name}

    def work(self, dtype: str, tf32: bool, backward: bool) -> cuda_work.Work:
        sizes = (1, rule.HEADS, self.case.length, dtype, cuda_work.DEVICES["h100"])
        return omega_work.omega_rule(self.rule, *sizes, tf32=tf32, backward=backward)


BenchCase = CudaCase | OmegaCase
# Beginnings of names in bench/cases/rule.py.
OMEGA = {
    "omega_rule linear, T2048": omega_work.OmegaRule(64, 64),
    "omega_rule degree 2, T2048": omega_work.OmegaRule(32, 32, degree=2),
    "omega_rule mlp F256, T2048": omega_work.OmegaRule(64, 64, 256, memory="mlp"),
    "omega_rule gated mlp F256, T2048": omega_work.OmegaRule(64, 64, 256, memory="gated_mlp"),
    "omega_rule linear, NS": omega_work.OmegaRule(64, 64, ns_steps=rule.NS_STEPS),
    "omega_rule mlp F256, NS": omega_work.OmegaRule(
        64, 64, 256, memory="mlp", ns_steps=rule.NS_STEPS
    ),
}


def omega_case(name: str) -> OmegaCase:
    (case,) = (case for case in rule.CASES if case.name.startswith(name))
    return OmegaCase(case, OMEGA[name])


CASES = (
    CudaCase("newton_schulz", (4096, 16, 16)),
    CudaCase("newton_schulz", (4096, 64, 16)),
    CudaCase("newton_schulz", (2048, 64, 64)),
    CudaCase("newton_schulz", (1024, 153, 64), 2),
    CudaCase("newton_schulz", (1024, 128, 128), 1),
    CudaCase("newton_schulz", (16, 512, 512), 1),
    CudaCase("poly_features", (65536, 16), 9),
    CudaCase("poly_features", (32768, 64), 9),
    *map(omega_case, OMEGA),
)
