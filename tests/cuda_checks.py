"""What the CUDA kernels of both Omega rules must do, and how their tests run and compare them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas_ext import testing
from atlas_ext._case import PLAIN_TOLERANCE
from atlas_ext.testing import Case, Inputs, map_tensors, named_tensors, relative_error

CAPABILITIES = (75, 80, 90)
each_memory = pytest.mark.parametrize("memory", ["linear", "mlp", "gated_mlp"])
each_wrong_bounds = pytest.mark.parametrize(
    "bounds", [(0, 30, 11), (-4, 3, 11), (0, 7, 5), (3, 3, 3)]
)
Results = dict[str, Tensor]


def check(
    actual: Results, wanted: Results, tolerance: float = PLAIN_TOLERANCE[torch.float32]
) -> None:
    assert actual.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert relative_error(actual[name], tensor) <= tolerance, name


def check_case(
    case: Case,
    dtype: torch.dtype = torch.float32,
    tolerance: float | None = None,
    grad_tolerance: float | None = None,
) -> None:
    """Outputs and gradients, of whichever kernels are in use, against the reference."""
    tolerance = tolerance or case.tolerance(dtype)
    given = case.inputs(dtype)
    names = case.differentiable(given)
    inputs = testing.require_grad(given, names)
    outputs = case.run(inputs)
    grads = testing.gradients(outputs, inputs, names, testing.cotangents(outputs))
    wide = testing.require_grad(testing.wide_inputs(case.inputs(dtype)), names)
    wanted = case.run_reference(wide)
    wanted_grads = testing.gradients(wanted, wide, names, testing.cotangents(wanted))
    for found, truth, limit in (
        (outputs, wanted, tolerance),
        (grads, wanted_grads, grad_tolerance or tolerance),
    ):
        errors = {name: relative_error(found[name].detach(), truth[name]) for name in truth}
        bad = {name: f"{error:.1e}" for name, error in errors.items() if not error <= limit}
        assert not bad, bad


@torch.no_grad()
def check_causal(case: Case) -> None:
    """To the bit; the case has 23 tokens."""
    inputs = case.inputs(torch.float32)
    before = case.run(inputs)["o"]
    for t in (3, 8, 15, 22):
        later = dict(inputs)
        for name in ("q", "k", "v", "gamma", "eta", "log_alpha", "log_theta"):
            later[name] = inputs[name].clone()
            later[name][:, t] *= 0.5
        assert torch.equal(case.run(later)["o"][:, :t], before[:, :t])


def check_wrong_bounds(case: Case, bounds: tuple[int, ...]) -> None:
    """Their values cannot be read without waiting for the device; the kernel clamps them."""
    inputs = case.inputs(torch.float32)
    inputs["cu_seqlens"] = torch.tensor(bounds, dtype=torch.int32)
    inputs = testing.require_grad(inputs, ["q", "v"])
    o = case.run(inputs)["o"]
    assert o.shape == inputs["v"].shape
    torch.autograd.grad(o.nan_to_num().sum(), [inputs["q"], inputs["v"]])


def check_strides(
    update: Callable[..., Tensor],
    wanted_of: Callable[..., Results],
    inputs: Inputs,
    *,
    short: tuple[str, ...],  # of the state's tensors
    **options: Any,
) -> None:
    """Rows apart, heads outermost, positions of every other element; `short` ones in bfloat16."""

    def is_short(name: str) -> bool:
        return name.rpartition(".")[2] in short

    def spread(name: str, tensor: Tensor) -> Tensor:
        if name == "position":
            return tensor.repeat_interleave(2)[::2]
        if is_short(name):
            tensor = tensor.bfloat16()
        padded = torch.nn.functional.pad(tensor.transpose(0, 1).contiguous(), (0, 3, 0, 2))
        return padded[..., : tensor.shape[-2], : tensor.shape[-1]].transpose(0, 1)

    state = map_tensors(spread, inputs["state"])
    wanted = wanted_of({**inputs, "state": state}, **options)
    with testing.emulated(order="random"):
        o = update(**{**inputs, "state": state}, **options)  # a copy would be dense
    actual = named_tensors({"o": o, "state": state})
    for name, tensor in wanted.items():
        stored = torch.bfloat16 if is_short(name) else torch.float32
        assert relative_error(actual[name], tensor) <= PLAIN_TOLERANCE[stored], name


def check_orders(run: Callable[[], Results]) -> None:
    """The order of threads changes no bit."""
    results = []
    for order in ("forward", "reverse", "random"):
        with testing.emulated(order=order, seed=5):
            results.append(run())
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name
