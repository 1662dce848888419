"""exp_omega_rule: the linear and the MLP memory, and attention, which is its simplest case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from atlas_ext import testing
from bench import eager, roofline
from bench.cases.base import Case, Rival, Shape, cases_of, shapes
from bench.cases.rule import CHUNK, COMPILED, MLP, WINDOW, deep_weights, in_float32, stepwise
from bench.timing import Inputs

KEY = 64
# A chunk's steps are all taken at its start, and every key of 64 meets every other: small ones.
STEP = 0.01
LENGTHS = shapes((256, 2048, 8192), (512, 2048, 8192), 2 * CHUNK)
DEEP_LENGTHS = shapes((256, 1024, 4096), (512, 2048, 8192), 2 * CHUNK)


def linear_inputs(generator: torch.Generator, shape: Shape) -> Inputs:
    sizes = {"H": shape.heads, "K": KEY, "V": KEY, "W": WINDOW}
    inputs = testing.omega_tensors(generator, (shape.batch, shape.length), **sizes, theta=True)
    inputs["eta"] = STEP * inputs["eta"]
    inputs["log_alpha"] = 0.2 * inputs["log_alpha"]
    return dict(inputs)


def mlp_inputs(generator: torch.Generator, shape: Shape) -> Inputs:
    inputs = linear_inputs(generator, shape)
    return inputs | {"weights": deep_weights(generator, shape.heads, MLP)}


def attention_inputs(generator: torch.Generator, shape: Shape) -> Inputs:
    lead = (shape.batch, shape.length, shape.heads)
    return {name: testing.normal(generator, *lead, KEY) for name in ("q", "k", "v")}


def attention(inputs: Inputs) -> Tensor:
    """torch's own, on views of [B, T, H, K]."""
    heads = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
    out = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
    return out.transpose(1, 2)


def gated_attention(
    function: Callable[..., Any], inputs: Inputs, options: dict[str, Any]
) -> Tensor:
    """All gates are 1, and want no gradient."""
    q = inputs["q"]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    ones = torch.ones(*q.shape[:3], 1, dtype=wide, device=q.device)
    out: Tensor = function(**inputs, gamma=ones, eta=ones[..., 0], **options)[0]
    return out


def rule_flops(matrices: roofline.Shapes) -> Callable[[Shape], float]:
    return lambda shape: (
        shape.batch
        * roofline.exp_omega_rule_flops(shape.length, shape.heads, KEY, matrices, CHUNK, WINDOW)
    )


def attention_flops(shape: Shape) -> float:
    """Scores and sums of the pairs (t, i) with i <= t."""
    pairs = shape.length * (shape.length + 1) / 2
    return shape.batch * shape.heads * 2.0 * pairs * 2 * KEY


EAGER = (
    Rival("eager, chunk by chunk", in_float32(eager.exp_omega_rule)),
    Rival(COMPILED, stepwise(eager.exp_omega_rule, eager.exp_step, dynamic=True)),
)


def cases(device: str) -> list[Case]:
    sizes = f"B{{batch}} H{{heads}} C{CHUNK}"
    momentum: dict[str, Any] = {
        "op": "exp_omega_rule",
        "rivals": EAGER,
        "options": {"objective": "l2", "chunk_size": CHUNK},
    }
    return [
        *cases_of(
            f"linear K64 V64 W{WINDOW}, momentum, {sizes}", LENGTHS, device,
            build=linear_inputs, forward_flops=rule_flops(((KEY, KEY),)), **momentum,
        ),
        *cases_of(
            f"mlp F256 K64 V64 W{WINDOW}, momentum, {sizes}", DEEP_LENGTHS, device,
            build=mlp_inputs, forward_flops=rule_flops(MLP), **momentum,
        ),
        *cases_of(
            f"as softmax attention, K64 V64, {sizes}", LENGTHS, device,
            op="exp_omega_rule",
            rivals=(Rival("scaled_dot_product_attention", attention),),
            build=attention_inputs, forward_flops=attention_flops,
            options={"normalize": "softmax", "chunk_size": CHUNK}, body=gated_attention,
        ),
    ]  # fmt: skip
