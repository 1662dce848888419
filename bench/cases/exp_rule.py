"""exp_omega_rule: the linear and the MLP memory, and attention, which is its simplest case."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atlas_ext import testing
from bench import eager, roofline
from bench.cases.base import OperatorCase, Rival
from bench.cases.rule import CHUNK, HEADS, MLP, WINDOW, call_eager, deep_weights
from bench.timing import Inputs

KEY = 64
L2: dict[str, Any] = {"objective": "l2"}
# A chunk's steps are all taken at its start, and every key of 64 meets every other: small ones.
STEP = 0.01


def linear_inputs(generator: torch.Generator, tokens: int) -> Inputs:
    sizes = {"H": HEADS, "K": KEY, "V": KEY, "W": WINDOW}
    inputs = testing.omega_tensors(generator, (1, tokens), **sizes, theta=True)
    inputs["eta"] = STEP * inputs["eta"]
    inputs["log_alpha"] = 0.2 * inputs["log_alpha"]
    return dict(inputs)


def mlp_inputs(generator: torch.Generator, tokens: int) -> Inputs:
    inputs = linear_inputs(generator, tokens)
    return inputs | {"weights": deep_weights(generator, MLP)}


def attention_inputs(generator: torch.Generator, tokens: int) -> Inputs:
    lead = (1, tokens, HEADS)
    names = {name: testing.normal(generator, *lead, KEY) for name in ("q", "k", "v")}
    ones = torch.ones(*lead, 1, dtype=torch.float64)
    return names | {"gamma": ones, "eta": ones[..., 0].clone()}


def attention(inputs: Inputs) -> Tensor:
    """torch's own, which has no gates; these take part with a factor of 0, for their gradients."""
    heads = (inputs[name].transpose(1, 2) for name in ("q", "k", "v"))
    out = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2)
    if not inputs["eta"].requires_grad:
        return out
    return out + 0 * (inputs["eta"].sum() + inputs["gamma"].sum())


def gated_attention(function: Any, inputs: Inputs, options: dict[str, Any]) -> Tensor:
    """Gates of 1 need no gradient: as many zeros as they have are what the rival returns."""
    gates = {name: inputs[name].detach() for name in ("gamma", "eta")}
    out: Tensor = function(**(inputs | gates), **options)[0]
    if not inputs["eta"].requires_grad:
        return out
    return out + 0 * (inputs["eta"].sum() + inputs["gamma"].sum())


def out_shape(tokens: int) -> tuple[int, ...]:
    return (1, tokens, HEADS, KEY)


def rule_flops(tokens: int, shapes: roofline.Shapes) -> float:
    return roofline.exp_omega_rule_flops(tokens, HEADS, KEY, shapes, CHUNK, WINDOW)


CASES = (
    OperatorCase(
        name="exp_omega_rule linear, T2048 H4 K64 V64 C64 W16, momentum",
        op="exp_omega_rule",
        build=linear_inputs,
        length=2048,
        check_length=192,
        rivals=(Rival("eager, chunk by chunk", call_eager(eager.exp_omega_rule)),),
        forward_flops=lambda tokens: rule_flops(tokens, ((KEY, KEY),)),
        out_shape=out_shape,
        options=L2 | {"chunk_size": CHUNK},
        most_rounds=15,
    ),
    OperatorCase(
        name="exp_omega_rule mlp F256, T1024 H4 K64 V64 C64 W16, momentum",
        op="exp_omega_rule",
        build=mlp_inputs,
        length=1024,
        check_length=192,
        rivals=(Rival("eager, chunk by chunk", call_eager(eager.exp_omega_rule)),),
        forward_flops=lambda tokens: rule_flops(tokens, MLP),
        out_shape=out_shape,
        options=L2 | {"chunk_size": CHUNK},
        most_rounds=21,
    ),
    OperatorCase(
        name="exp_omega_rule as softmax attention, T2048 H4 K64 V64 C64",
        op="exp_omega_rule",
        build=attention_inputs,
        length=2048,
        check_length=192,
        rivals=(Rival("scaled_dot_product_attention", attention),),
        forward_flops=lambda tokens: HEADS * 2.0 * tokens * (tokens + 1) / 2 * 2 * KEY,
        out_shape=out_shape,
        options={"normalize": "softmax", "chunk_size": CHUNK},
        body=gated_attention,
    ),
)
