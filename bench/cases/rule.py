"""omega_rule: linear, MLP and gated MLP memories, with and without Newton-Schulz."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from atlas_ext import testing
from bench import eager, packages, roofline
from bench.cases.base import Case, Rival, Shape, Shapes, cases_of, shapes
from bench.compiled import compiled
from bench.roofline import Shapes as Matrices
from bench.timing import Inputs, Operator

WINDOW, CHUNK, NS_STEPS = 16, 64, 5
LINEAR: Matrices = ((64, 64),)
DEGREE_2: Matrices = ((32, 561),)
MLP: Matrices = ((256, 64), (64, 256))
GATED: Matrices = ((256, 64), (256, 64), (64, 256))
PRESET: Matrices = ((64, 153), (16, 64))  # of the Atlas presets: K = V = 16, degree 2, F = 64
DEEP = {"residual": True}
COMPILED = "torch.compile, chunk by chunk"
LENGTHS = shapes((256, 2048, 16384), (512, 2048, 8192), 2 * CHUNK)
NS_LENGTHS = shapes((128, 512, 2048), (256, 1024, 4096), CHUNK)
DEEP_NS_LENGTHS = shapes((64, 256, 512), (256, 1024, 4096), CHUNK)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A family: one memory with one set of options."""

    family: str
    matrices: Matrices
    rivals: tuple[Rival, ...]
    key: int = 64
    step: float = 0.1  # so small that the rule stays stable
    where: Shapes = field(default_factory=lambda: LENGTHS)
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, generator: torch.Generator, shape: Shape) -> Inputs:
        """Decay and momentum."""
        sizes = {"H": shape.heads, "K": self.key, "V": self.matrices[-1][0], "W": WINDOW}
        lead = (shape.batch, shape.length)
        inputs = testing.omega_tensors(generator, lead, **sizes, theta=True)
        inputs["eta"] = self.step * inputs["eta"]
        inputs["log_alpha"] = 0.2 * inputs["log_alpha"]
        inputs["weights"] = deep_weights(generator, shape.heads, self.matrices)
        return dict(inputs)

    def flops(self, shape: Shape) -> float:
        if "ns_steps" in self.options:
            return shape.batch * roofline.omega_rule_muon_flops(
                shape.length, shape.heads, self.matrices, CHUNK, WINDOW, NS_STEPS,
                self.options.get("ns_every", 1),
            )  # fmt: skip
        return shape.batch * roofline.omega_rule_flops(
            shape.length, shape.heads, self.key, self.matrices, CHUNK, WINDOW
        )

    def cases(self, device: str) -> list[Case]:
        return cases_of(
            f"{self.family}, B{{batch}} H{{heads}} C{CHUNK} W{WINDOW}",
            self.where,
            device,
            op="omega_rule",
            rivals=self.rivals,
            build=self.build,
            forward_flops=self.flops,
            options=self.options | {"chunk_size": CHUNK},
            orthogonalised="ns_steps" in self.options,
        )


def deep_weights(generator: torch.Generator, heads: int, matrices: Matrices) -> tuple[Tensor, ...]:
    """M_0 of a memory; inner layers so large that the activation is no straight line."""
    *inner, last = matrices
    weights = [4.0 * testing.normal(generator, heads, *s) / math.sqrt(s[1]) for s in inner]
    return (*weights, testing.normal(generator, heads, *last) / math.sqrt(last[1]))


def in_float32(function: Callable[..., Tensor], **options: Any) -> Operator:
    """Eager states need float32; what comes out is in q's dtype."""

    def operator(inputs: Inputs) -> Tensor:
        held = {n: x.float() if n in ("q", "k", "v") else x for n, x in inputs.items()}
        return function(**held, **options).to(inputs["q"].dtype)

    return operator


def stepwise(
    function: Callable[..., Tensor], step: Any, dynamic: bool = False, **options: Any
) -> Operator:
    """The same loop around a compiled body: compiled once for all chunks."""
    return lambda inputs: in_float32(function, step=compiled(step, dynamic), **options)(inputs)


def dual_rivals(targets: tuple[float, float], **options: Any) -> tuple[Rival, ...]:
    by_chunk = in_float32(eager.omega_rule_by_chunk, **options)
    body = stepwise(eager.omega_rule_by_chunk, eager.chunk_step, **options)
    return (
        Rival("eager, chunk by chunk", by_chunk, targets=targets),
        Rival("eager, hoisted", in_float32(eager.omega_rule, **options), targets=targets),
        Rival(COMPILED, body),
    )


def muon_rivals(targets: tuple[float | None, float | None], **options: Any) -> tuple[Rival, ...]:
    body = stepwise(eager.omega_rule_muon, eager.muon_step, **options)
    return (
        Rival("eager", in_float32(eager.omega_rule_muon, **options), targets=targets),
        Rival(COMPILED, body),
    )


def fla_rival(name: str, operator: Operator, inputs: Callable[[Inputs], Inputs]) -> Rival:
    """Less work than ours: no window, no momentum, one exact recurrence."""
    return Rival(
        name, operator, inputs, devices=("cuda",), dtypes=("bfloat16", "float16"),
        absent=packages.absent("fla", "flash-linear-attention"),
    )  # fmt: skip


FLA = (
    fla_rival("fla delta rule", packages.delta_rule, packages.delta_inputs),
    fla_rival("fla gated delta rule", packages.gated_delta_rule, packages.gated_delta_inputs),
)
PRESET_OPTIONS = {"residual": True, "degree": 2, "ns_steps": NS_STEPS, "ns_every": 16}

RULES = (
    Rule(
        family="linear K64 V64, momentum",
        matrices=LINEAR,
        rivals=(*dual_rivals((4.0, 4.0)), *FLA),
    ),
    Rule(
        family="linear degree 2 K32 V32, momentum",
        matrices=DEGREE_2,
        rivals=dual_rivals((4.0, 4.0), degree=2),
        key=32,
        step=0.01,
        options={"degree": 2},
    ),
    Rule(
        family="mlp F256 K64 V64, momentum",
        matrices=MLP,
        rivals=dual_rivals((2.3, 2.5), **DEEP),
        options=DEEP,
    ),
    Rule(
        family="gated mlp F256 K64 V64, momentum",
        matrices=GATED,
        rivals=dual_rivals((2.3, 2.5), **DEEP),
        options=DEEP,
    ),
    Rule(
        family="linear K64 V64, NS at every token",
        matrices=LINEAR,
        rivals=muon_rivals((2.0, 2.0)),
        where=NS_LENGTHS,
        options={"ns_steps": NS_STEPS},
    ),
    Rule(
        family="mlp F256 K64 V64, NS at every token",
        matrices=MLP,
        rivals=muon_rivals((2.0, 2.0), **DEEP),
        where=DEEP_NS_LENGTHS,
        options=DEEP | {"ns_steps": NS_STEPS},
    ),
    Rule(
        family="Atlas preset, mlp F64 degree 2 K16 V16, NS every 16",
        matrices=PRESET,
        rivals=muon_rivals((None, None), residual=True, degree=2, every=16),
        key=16,
        where=NS_LENGTHS,
        options=PRESET_OPTIONS,
    ),
)


def cases(device: str) -> list[Case]:
    return [case for rule in RULES for case in rule.cases(device)]
