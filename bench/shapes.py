"""The cases of the benchmark: shapes, rivals, targets, counts of work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import atlas_ext
import atlas_ext.reference
from atlas_ext import testing
from bench import eager, roofline
from bench.timing import Inputs, Operator, map_inputs

Pair = tuple[float | None, float | None]  # of the two directions

# Relative Frobenius errors of float32 against the float64 reference.
PLAIN, WITH_NEWTON_SCHULZ = 2e-5, 5e-4


@dataclass(frozen=True)
class Rival:
    """Who we are compared with, and the ratio that the project asks for."""

    name: str
    operator: Operator | None = None  # None: our own operator
    length: int | None = None  # None: the case's own
    repeat: int = 1  # calls per turn
    targets: Pair = (None, None)
    at_most: bool = False  # ours / rival <= target; otherwise rival / ours >= target

    def ratio(self, ours: float, theirs: float) -> float:
        return ours / theirs if self.at_most else theirs / ours

    def met(self, ratio: float, target: float) -> bool:
        return ratio <= target if self.at_most else ratio >= target


@dataclass(frozen=True)
class BenchCase:
    """One shape of one operator. `length` is its first size: matrices, rows or tokens."""

    name: str
    op: str
    build: Callable[[torch.Generator, int], Inputs]  # float64, from a generator and a length
    length: int
    check_length: int  # short enough for the token-by-token reference
    rivals: tuple[Rival, ...]
    flops: Callable[[int], float]
    out_shape: Callable[[int], tuple[int, ...]]
    options: dict[str, Any]
    tolerance: float = PLAIN
    memory_bound: bool = False

    def inputs(self, length: int | None = None) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        built = self.build(generator, length or self.length)
        return map_inputs(Tensor.float, built)

    def grad(self, length: int | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.out_shape(length or self.length), generator=generator)

    def ours(self, inputs: Inputs) -> Tensor:
        return first(getattr(atlas_ext, self.op)(**inputs, **self.options))

    def reference(self, inputs: Inputs) -> Tensor:
        return first(getattr(atlas_ext.reference, self.op)(**inputs, **self.options))

    @property
    def missing(self) -> str | None:
        """Why the operator cannot run here; None: it can."""
        if not hasattr(atlas_ext, self.op):
            return f"{self.op}: not in this version"
        names = (f"atlas_ext::{self.op}", f"atlas_ext::{self.op}_backward")
        built = all(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU") for name in names)
        return None if built else f"{self.op}: op not built"


def memcpy(inputs: Inputs) -> Tensor:
    """What writing a given output costs at the least; `inputs` holds that output."""
    return inputs["out"].clone()


def first(output: Tensor | tuple[Tensor, Any]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _poly(generator: torch.Generator, rows: int) -> Inputs:
    return {"x": testing.normal(generator, rows, 64)}


def _schulz(generator: torch.Generator, batch: int) -> Inputs:
    return {"x": testing.conditioned(generator, batch, 64, 64)}


def _rule(size: int, features: int, step: float = 0.1) -> Callable[[torch.Generator, int], Inputs]:
    """K = V = size, B1 H4 W16, decay and momentum; steps so small that the rule stays stable."""

    def build(generator: torch.Generator, tokens: int) -> Inputs:
        lead = (1, tokens)
        inputs = testing.omega_tensors(generator, lead, H=4, K=size, V=size, W=16, theta=True)
        inputs["eta"] = step * inputs["eta"]
        inputs["log_alpha"] = 0.2 * inputs["log_alpha"]
        inputs["weights"] = testing.linear_weights(generator, 4, V=size, D=features)
        return inputs

    return build


def _rule_rival(function: Callable[..., Tensor], **options: Any) -> Operator:
    def operator(inputs: Inputs) -> Tensor:
        tensors = {**inputs, "weights": inputs["weights"][0]}
        return function(**tensors, **options)

    return operator


def _rule_rivals(target: float, **options: Any) -> tuple[Rival, ...]:
    by_chunk = _rule_rival(eager.omega_rule_by_chunk, **options)
    hoisted = _rule_rival(eager.omega_rule, **options)
    return (
        Rival("eager, chunk by chunk", by_chunk, targets=(target, target)),
        Rival("eager, hoisted", hoisted, targets=(target, target)),
    )


def _rule_flops(size: int, features: int) -> Callable[[int], float]:
    return lambda tokens: roofline.omega_rule_flops(tokens, 4, size, size, features, 64, 16)


CASES: Sequence[BenchCase] = (
    BenchCase(
        name="newton_schulz [512, 64, 64], 5 steps",
        op="newton_schulz",
        build=_schulz,
        length=512,
        check_length=8,
        rivals=(
            Rival("eager bmm loop", lambda i: eager.newton_schulz(i["x"]), targets=(2.2, 2.0)),
        ),
        flops=lambda batch: roofline.newton_schulz_flops(batch, 64, 64, 5),
        out_shape=lambda batch: (batch, 64, 64),
        options={},
        tolerance=WITH_NEWTON_SCHULZ,
    ),
    BenchCase(
        name="poly_features [8192, 64], degree 2",
        op="poly_features",
        build=_poly,
        length=8192,
        check_length=64,
        rivals=(
            Rival("index-gather", lambda i: eager.poly_features(i["x"]), targets=(6.0, 6.0)),
            Rival("memcpy", memcpy, targets=(0.6, None)),
        ),
        flops=lambda rows: roofline.poly_features_flops(rows, 64),
        out_shape=lambda rows: (rows, 2145),
        options={"degree": 2},
        memory_bound=True,
    ),
    BenchCase(
        name="omega_rule linear, T2048 H4 K64 V64 C64 W16, momentum",
        op="omega_rule",
        build=_rule(64, 64),
        length=2048,
        check_length=192,
        rivals=_rule_rivals(4.0),
        flops=_rule_flops(64, 64),
        out_shape=lambda tokens: (1, tokens, 4, 64),
        options={"chunk_size": 64},
    ),
    BenchCase(
        name="omega_rule degree 2, T2048 H4 K32 V32 C64 W16, momentum",
        op="omega_rule",
        build=_rule(32, 561, step=0.01),
        length=2048,
        check_length=192,
        rivals=_rule_rivals(4.0, degree=2),
        flops=_rule_flops(32, 561),
        out_shape=lambda tokens: (1, tokens, 4, 32),
        options={"degree": 2, "chunk_size": 64},
    ),
    BenchCase(
        name="omega_rule linear, NS at every token, T512 H4 K64 V64 C64 W16",
        op="omega_rule",
        build=_rule(64, 64),
        length=512,
        check_length=128,
        rivals=(Rival("eager", _rule_rival(eager.omega_rule_muon), targets=(2.0, 2.0)),),
        flops=lambda tokens: roofline.omega_rule_muon_flops(tokens, 4, 64, 64, 64, 16, 5),
        out_shape=lambda tokens: (1, tokens, 4, 64),
        options={"ns_steps": 5, "chunk_size": 64},
        tolerance=WITH_NEWTON_SCHULZ,
    ),
    BenchCase(
        name="omega_rule linear, T16384 against T2048",
        op="omega_rule",
        build=_rule(64, 64),
        length=16384,
        check_length=192,
        rivals=(Rival("ours, T2048", length=2048, repeat=8, targets=(8.4, 8.4), at_most=True),),
        flops=_rule_flops(64, 64),
        out_shape=lambda tokens: (1, tokens, 4, 64),
        options={"chunk_size": 64},
    ),
)


def find(pattern: str) -> list[BenchCase]:
    """Cases whose name contains all words of `pattern`."""
    words = pattern.lower().split()
    return [case for case in CASES if all(word in case.name.lower() for word in words)]
