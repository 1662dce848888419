"""Argument checks: every error names the op, the argument, what was wanted and what came."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor


def fail(op: str, argument: str, wanted: str, got: object) -> NoReturn:
    raise ValueError(f"{op}: {argument}: wanted {wanted}, got {got}")


def check(condition: bool, op: str, argument: str, wanted: str, got: object) -> None:
    if not condition:
        fail(op, argument, wanted, got)


def check_floating(op: str, argument: str, value: object) -> None:
    check(isinstance(value, Tensor), op, argument, "a tensor", type(value).__name__)
    assert isinstance(value, Tensor)
    check(value.is_floating_point(), op, argument, "a floating dtype", value.dtype)


def check_shape(op: str, argument: str, value: Tensor, names: str, shape: tuple[int, ...]) -> None:
    """``names`` spells the shape in letters for the error text, e.g. "[B, T, H]"."""
    check(
        tuple(value.shape) == shape,
        op,
        argument,
        f"shape {names} = {list(shape)}",
        list(value.shape),
    )


def check_choice(op: str, argument: str, value: object, choices: tuple[str, ...]) -> None:
    wanted = "one of " + ", ".join(repr(choice) for choice in choices)
    check(isinstance(value, str) and value in choices, op, argument, wanted, repr(value))


def check_count(op: str, argument: str, value: object, least: int) -> None:
    valid = isinstance(value, int) and not isinstance(value, bool) and value >= least
    check(valid, op, argument, f"an integer >= {least}", repr(value))


def compute_dtype(value: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything narrower."""
    return torch.float64 if value.dtype == torch.float64 else torch.float32
