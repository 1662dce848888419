"""Autocast casts the activations alone: gates, log decays, weights, scales and states stay."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from atlas_ext.testing import (
    CASES,
    Case,
    cases,
    cotangents,
    gradients,
    map_tensors,
    named_tensors,
    require_grad,
)

CAST = ("x", "q", "k", "v")
CHOSEN = [case for case in CASES if case.thorough]
each_case = pytest.mark.parametrize("case", CHOSEN, ids=lambda case: case.id)
each_dtype = pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"]
)


def cast_by_hand(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    return map_tensors(lambda name, t: t.to(dtype) if name in CAST else t, inputs)


@each_dtype
@each_case
def test_equals_casting_activations_by_hand(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(torch.float32)
    wanted = case.run(cast_by_hand(inputs, dtype))
    with torch.autocast("cpu", dtype):
        actual = case.run(inputs)
    for name, output in wanted.items():
        assert actual[name].dtype == output.dtype, name
        assert torch.equal(actual[name], output), name
    assert actual["out" if "out" in actual else "o"].dtype == dtype


@pytest.mark.parametrize("case", [case for case in CHOSEN if not case.in_place], ids=lambda c: c.id)
def test_gradients_arrive_in_the_dtype_of_the_inputs(case: Case) -> None:
    inputs = case.inputs(torch.float32)
    names = case.differentiable(inputs)

    def grads(under_autocast: bool) -> dict[str, Tensor]:
        leaves = require_grad(inputs, names)
        if under_autocast:
            with torch.autocast("cpu", torch.bfloat16):
                outputs = case.run(leaves)
        else:
            outputs = case.run(cast_by_hand(leaves, torch.bfloat16))
        return gradients(outputs, leaves, names, cotangents(outputs))

    actual, wanted = grads(True), grads(False)
    for name in names:
        assert actual[name].dtype == named_tensors(inputs)[name].dtype == torch.float32
        assert torch.equal(actual[name], wanted[name]), name


@pytest.mark.parametrize("op", ["poly_features", "newton_schulz", "omega_rule", "exp_omega_rule"])
def test_float64_is_left_alone(op: str) -> None:
    case = cases(op)[0]
    inputs = case.inputs(torch.float64)
    wanted = case.run(inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = case.run(inputs)
    for name, output in wanted.items():
        assert torch.equal(actual[name], output), name


def test_compiles_under_autocast() -> None:
    torch._dynamo.reset()
    case = next(case for case in cases("omega_rule") if case.name == "ragged")
    inputs = case.inputs(torch.float32)
    from atlas_ext import omega_rule

    compiled = torch.compile(omega_rule, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        actual, wanted = case.run(inputs, compiled), case.run(inputs)
    for name, output in wanted.items():
        assert actual[name].dtype == output.dtype, name
        assert torch.equal(actual[name], output), name
