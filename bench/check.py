"""Nothing is timed that is not right: each case meets the reference before its first round."""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_ext.testing import relative_error
from bench.shapes import BenchCase
from bench.timing import DIRECTIONS, Inputs, evaluate, map_inputs


def leaves_of(inputs: Inputs) -> Inputs:
    return map_inputs(lambda tensor: tensor.detach().requires_grad_(), inputs)


def errors_against_reference(case: BenchCase) -> dict[str, float]:
    """Relative errors of the output and of every gradient, on a short input, against fp64."""
    inputs = case.inputs(case.check_length)
    wide = map_inputs(Tensor.double, inputs)
    grad = case.grad(case.check_length)
    both = DIRECTIONS[1]
    actual = evaluate(case.ours, leaves_of(inputs), both, grad)
    expected = evaluate(case.reference, leaves_of(wide), both, grad.double())
    names = ["output", *(f"grad_{name}" for name in inputs)]
    return {
        name: relative_error(ours, theirs)
        for name, ours, theirs in zip(names, actual, expected, strict=True)
    }


def error_against_rival(case: BenchCase) -> float | None:
    """Relative difference of the full-size outputs of ours and of the first rival."""
    operator = case.rivals[0].operator
    if operator is None:
        return None
    inputs = case.inputs()
    with torch.no_grad():
        return relative_error(case.ours(inputs), operator(inputs))


def require_correct(case: BenchCase) -> dict[str, float]:
    """The errors found; raises AssertionError where one is beyond the case's tolerance."""
    errors = errors_against_reference(case)
    against_rival = error_against_rival(case)
    if against_rival is not None:
        errors["full size"] = against_rival
    wrong = {name: error for name, error in errors.items() if not error <= case.tolerance}
    assert not wrong, f"{case.name}: not timed: relative errors above {case.tolerance}: {wrong}"
    return errors
