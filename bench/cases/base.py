"""What a case of the benchmark is: one operator at one shape, its rivals and its targets."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import atlas_ext
import atlas_ext.reference
from atlas_ext.testing import relative_error
from bench.timing import (
    DIRECTIONS,
    Call,
    Inputs,
    Operator,
    evaluate,
    map_inputs,
    prepare,
    tensors_of,
)

Pair = tuple[float | None, float | None]  # of the two directions

# Relative Frobenius errors against the float64 reference on the same (rounded) inputs.
PLAIN, WITH_NEWTON_SCHULZ, BFLOAT16 = 2e-5, 5e-4, 2e-2
ACTIVATIONS = ("q", "k", "v", "x")  # inputs that are held in the case's dtype
SHORT = 64  # matrices, rows or tokens of a call that warms up: one chunk


@dataclass(frozen=True)
class Rival:
    """Who we are compared with, and the ratio that the project asks for."""

    name: str
    operator: Operator | None = None  # None: our own operator
    inputs: Callable[[int], Inputs] | None = None  # of its own, from a length; None: the case's
    length: int | None = None  # None: the case's own
    repeat: int = 1  # calls per turn
    targets: Pair = (None, None)
    at_most: bool = False  # ours / rival <= target; otherwise rival / ours >= target
    allowance: Callable[[int], dict[str, int]] | None = None  # bytes, set against our peak memory
    absent: str = ""  # why it cannot take part here
    peak: bool = True  # its peak memory is worth a process of its own

    def ratio(self, ours: float, theirs: float) -> float:
        return ours / theirs if self.at_most else theirs / ours

    def met(self, ratio: float, target: float) -> bool:
        return ratio <= target if self.at_most else ratio >= target


@dataclass(frozen=True, kw_only=True)
class Case:
    """The common part: a line of the table for each rival and direction."""

    name: str
    op: str
    rivals: tuple[Rival, ...]
    tolerance: float = PLAIN
    directions: tuple[str, ...] = DIRECTIONS
    memory_bound: bool = False
    most_rounds: int = 1000  # fewer where a round takes long
    tokens: int | None = None  # decoded in a call: the table then shows a rate

    @property
    def missing(self) -> str | None:
        """Why the case cannot run here; None: it can."""
        raise NotImplementedError

    def errors(self) -> dict[str, float]:
        """Relative errors that `tolerance` bounds: of short inputs, and of the full size."""
        raise NotImplementedError

    def call(self, rival: Rival | None, direction: str, length: int | None = None) -> Call:
        """What is timed; None stands for our operator."""
        raise NotImplementedError

    def flops(self, direction: str) -> float:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OperatorCase(Case):
    """A differentiable operator. `length` is its first size: matrices, rows or tokens."""

    build: Callable[[torch.Generator, int], Inputs]  # float64, from a generator and a length
    length: int
    check_length: int  # short enough for the token-by-token reference
    forward_flops: Callable[[int], float]
    out_shape: Callable[[int], tuple[int, ...]]
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32  # of activations
    checker: Operator | None = None  # against which the full size is checked; None: first rival
    # what a call does with the operator, or with another of its signature
    body: Callable[[Callable[..., Any], Inputs, dict[str, Any]], Tensor] | None = None

    def inputs(self, length: int | None = None) -> Inputs:
        generator = torch.Generator().manual_seed(0)
        built = map_inputs(Tensor.float, self.build(generator, length or self.length))
        return {n: t.to(self.dtype) if n in ACTIVATIONS else t for n, t in built.items()}

    def grad(self, length: int | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.out_shape(length or self.length), generator=generator)

    def run(self, function: Callable[..., Any], inputs: Inputs) -> Tensor:
        if self.body is not None:
            return self.body(function, inputs, self.options)
        return first(function(**inputs, **self.options))

    def ours(self, inputs: Inputs) -> Tensor:
        return self.run(getattr(atlas_ext, self.op), inputs)

    def reference(self, inputs: Inputs) -> Tensor:
        return self.run(getattr(atlas_ext.reference, self.op), inputs)

    @functools.cached_property
    def missing(self) -> str | None:  # type: ignore[override]
        names = (f"atlas_ext::{self.op}", f"atlas_ext::{self.op}_backward")
        return missing_kernels(self.op, names) or missing_option(
            lambda: evaluate(self.ours, self.inputs(1), DIRECTIONS[0], self.grad(1))
        )

    def call(self, rival: Rival | None, direction: str, length: int | None = None) -> Call:
        operator, build = self.ours, self.inputs
        if rival is not None:
            operator, build = rival.operator or self.ours, rival.inputs or self.inputs
            length = length or rival.length
        length = length or self.length
        inputs = build(length)
        grad = self.grad(length).to(tensors_of(inputs)[0].dtype)
        return prepare(operator, inputs, direction, grad)

    def flops(self, direction: str) -> float:
        return self.forward_flops(self.length) * (1 if direction == DIRECTIONS[0] else 3)

    def errors(self) -> dict[str, float]:
        errors = self._against_reference()
        checker = self.checker or self.rivals[0].operator
        if checker is not None:
            inputs = self.inputs()
            with torch.no_grad():
                theirs = checker(map_inputs(Tensor.float, inputs))
                errors["full size"] = relative_error(self.ours(inputs), theirs)
        return errors

    def _against_reference(self) -> dict[str, float]:
        """Of the output and of every gradient, against float64 on a short input."""
        inputs, grad = self.inputs(self.check_length), self.grad(self.check_length)
        wide, both = map_inputs(Tensor.double, inputs), DIRECTIONS[1]
        grad = grad.to(tensors_of(inputs)[0].dtype)
        actual = evaluate(self.ours, leaves_of(inputs), both, grad)
        expected = evaluate(self.reference, leaves_of(wide), both, grad.double())
        names = ["output", *(f"grad_{name}" for name in names_of(inputs))]
        return {
            name: relative_error(ours, theirs)
            for name, ours, theirs in zip(names, actual, expected, strict=True)
        }


def missing_kernels(op: str, names: tuple[str, ...]) -> str | None:
    if not hasattr(atlas_ext, op):
        return f"{op}: not in this version"
    built = all(torch._C._dispatch_has_kernel_for_dispatch_key(name, "CPU") for name in names)
    return None if built else f"{op}: op not built"


def missing_option(attempt: Callable[[], object]) -> str | None:
    """What a version without some memory or option says of itself."""
    try:
        attempt()
    except RuntimeError as error:
        if "not in this version" in str(error):
            return str(error)
        raise
    return None


def leaves_of(inputs: Inputs) -> Inputs:
    return map_inputs(lambda tensor: tensor.detach().requires_grad_(), inputs)


def names_of(inputs: Inputs) -> list[str]:
    """Of every tensor, as `tensors_of` lists them."""
    names = []
    for name, value in inputs.items():
        several = isinstance(value, tuple)
        names.extend([f"{name}[{i}]" for i in range(len(value))] if several else [name])
    return names


def first(output: Tensor | tuple[Tensor, Any]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
