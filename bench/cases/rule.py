"""omega_rule: linear, MLP and gated MLP memories, with and without Newton-Schulz."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atlas_ext import testing
from bench import eager, roofline
from bench.cases.base import BFLOAT16, WITH_NEWTON_SCHULZ, OperatorCase, Rival
from bench.roofline import Shapes
from bench.timing import DIRECTIONS, Inputs, Operator, map_inputs

HEADS, WINDOW, CHUNK, NS_STEPS = 4, 16, 64, 5
LINEAR: Shapes = ((64, 64),)
DEGREE_2: Shapes = ((32, 561),)
MLP: Shapes = ((256, 64), (64, 256))
GATED: Shapes = ((256, 64), (256, 64), (64, 256))
DEEP = {"residual": True}
T2048 = "T2048 H4 K64 V64 C64 W16, momentum"


def deep_weights(generator: torch.Generator, shapes: Shapes) -> tuple[Tensor, ...]:
    """M_0 of a memory; inner layers so large that the activation is no straight line."""
    *inner, last = shapes
    weights = [4.0 * testing.normal(generator, HEADS, *s) / math.sqrt(s[1]) for s in inner]
    return (*weights, testing.normal(generator, HEADS, *last) / math.sqrt(last[1]))


def rule_inputs(
    key: int, shapes: Shapes, step: float = 0.1
) -> Callable[[torch.Generator, int], Inputs]:
    """B1 H4 W16, decay and momentum; steps so small that the rule stays stable."""

    def build(generator: torch.Generator, tokens: int) -> Inputs:
        sizes = {"H": HEADS, "K": key, "V": shapes[-1][0], "W": WINDOW}
        inputs = testing.omega_tensors(generator, (1, tokens), **sizes, theta=True)
        inputs["eta"] = step * inputs["eta"]
        inputs["log_alpha"] = 0.2 * inputs["log_alpha"]
        inputs["weights"] = deep_weights(generator, shapes)
        return inputs

    return build


def call_eager(function: Callable[..., Tensor], **options: Any) -> Operator:
    return lambda inputs: function(**inputs, **options)


def rule_case(
    name: str,
    shapes: Shapes,
    rivals: tuple[Rival, ...],
    *,
    key: int = 64,
    step: float = 0.1,
    length: int = 2048,
    check_length: int = 192,
    **fields: Any,
) -> OperatorCase:
    options = fields.setdefault("options", {}) | {"chunk_size": CHUNK}
    sizes = HEADS, key, shapes, CHUNK, WINDOW
    flops: Callable[[int], float] = lambda tokens: roofline.omega_rule_flops(tokens, *sizes)  # noqa: E731
    if "ns_steps" in options:
        flops = lambda tokens: roofline.omega_rule_muon_flops(  # noqa: E731
            tokens, HEADS, shapes, CHUNK, WINDOW, NS_STEPS
        )
        fields["tolerance"] = WITH_NEWTON_SCHULZ
    return OperatorCase(
        name=name,
        op="omega_rule",
        build=rule_inputs(key, shapes, step),
        length=length,
        check_length=check_length,
        rivals=rivals,
        forward_flops=flops,
        out_shape=lambda tokens: (1, tokens, HEADS, shapes[-1][0]),
        **(fields | {"options": options}),
    )


def both_variants(targets: tuple[float, float], **options: Any) -> tuple[Rival, ...]:
    by_chunk = call_eager(eager.omega_rule_by_chunk, **options)
    hoisted = call_eager(eager.omega_rule, **options)
    return (
        Rival("eager, chunk by chunk", by_chunk, targets=targets),
        Rival("eager, hoisted", hoisted, targets=targets),
    )


def allowance(tokens: int) -> dict[str, int]:
    """Bytes of what the forward and backward of the MLP case cannot do without, from shapes.

    Inputs are q, k, v, the gates and M_0; every one of them has a gradient. Checkpoints are weights
    and momentum at the start of each chunk, in float32. The output's own gradient is in neither
    side of the ratio: the caller of the backward owns it.
    """
    rows = tokens * HEADS
    weights = HEADS * sum(out * width for out, width in MLP)
    inputs = rows * (3 * 64 + WINDOW + 3) + weights
    checkpoints = tokens // CHUNK * 2 * weights
    counts = {
        "inputs": inputs,
        "output": rows * 64,
        "gradients": inputs,
        "checkpoints": checkpoints,
    }
    return {name: 4 * count for name, count in counts.items()}


def float32_inputs(case: OperatorCase) -> Callable[[int], Inputs]:
    """The same (rounded) values, held in float32."""
    return lambda length: map_inputs(Tensor.float, case.inputs(length))


def bfloat16_case(name: str, target: float) -> OperatorCase:
    def build(*rivals: Rival) -> OperatorCase:
        return rule_case(
            name, MLP, rivals, options=DEEP, dtype=torch.bfloat16, tolerance=BFLOAT16,
            checker=call_eager(eager.omega_rule_by_chunk, **DEEP),
        )  # fmt: skip

    inputs = float32_inputs(build())
    targets = target, target
    return build(Rival("ours, float32", inputs=inputs, targets=targets, at_most=True, peak=False))


by_chunk_linear = call_eager(eager.omega_rule_by_chunk)
muon = eager.omega_rule_muon

CASES = (
    rule_case(f"omega_rule linear, {T2048}", LINEAR, both_variants((4.0, 4.0))),
    rule_case(
        "omega_rule degree 2, T2048 H4 K32 V32 C64 W16, momentum",
        DEGREE_2,
        both_variants((4.0, 4.0), degree=2),
        key=32,
        step=0.01,
        options={"degree": 2},
    ),
    rule_case(
        f"omega_rule mlp F256, {T2048}", MLP, both_variants((2.3, 2.5), **DEEP), options=DEEP
    ),
    rule_case(
        f"omega_rule gated mlp F256, {T2048}",
        GATED,
        both_variants((2.3, 2.5), **DEEP),
        options=DEEP,
    ),
    rule_case(
        "omega_rule linear, NS at every token, T512 H4 K64 V64 C64 W16",
        LINEAR,
        (Rival("eager", call_eager(muon), targets=(2.0, 2.0)),),
        length=512,
        check_length=128,
        options={"ns_steps": NS_STEPS},
        most_rounds=15,
    ),
    rule_case(
        "omega_rule mlp F256, NS at every token, T256 H4 K64 V64 C64 W16",
        MLP,
        (Rival("eager", call_eager(muon, **DEEP), targets=(2.0, 2.0)),),
        length=256,
        check_length=80,
        options=DEEP | {"ns_steps": NS_STEPS},
        most_rounds=15,
    ),
    rule_case(
        "omega_rule linear, T16384 against T2048",
        LINEAR,
        (
            Rival(
                "ours, T2048", length=2048, repeat=8, targets=(8.4, 8.4), at_most=True, peak=False
            ),
        ),
        length=16384,
        checker=by_chunk_linear,
    ),
    bfloat16_case("omega_rule mlp F256 bfloat16, T2048 H4 K64 V64 C64 W16, momentum", 1.3),
    rule_case(
        "omega_rule mlp F256, memory at T16384 H4 K64 V64 C64 W16, momentum",
        MLP,
        (
            Rival(
                "inputs, output, gradients, checkpoints",
                allowance=allowance,
                targets=(None, 1.5),
                at_most=True,
            ),
        ),
        length=16384,
        options=DEEP,
        checker=call_eager(eager.omega_rule_by_chunk, **DEEP),
        directions=DIRECTIONS[1:],
        most_rounds=5,
    ),
)
