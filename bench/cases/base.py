"""What a case of the benchmark is: one call of the tests' kind, its length and its rivals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

import atlas_ext
from atlas_ext import testing
from bench.setting import Setting
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

SIZES = ("small", "train", "long")


class Shape(NamedTuple):
    """What may differ between sizes and devices."""

    length: int  # tokens, matrices, rows or sequences: the plots' axis
    batch: int = 1
    heads: int = 4


Shapes = Mapping[str, Mapping[str, Shape]]  # by device, then by size


def shapes(cpu: tuple[int, ...], cuda: tuple[int, ...], emulated: int) -> Shapes:
    """Lengths of the three sizes; on a GPU 8 sequences of 16 heads, emulated one of one."""
    return {
        "cpu": {size: Shape(length) for size, length in zip(SIZES, cpu, strict=True)},
        "cuda": {size: Shape(length, 8, 16) for size, length in zip(SIZES, cuda, strict=True)},
        "emulated": {SIZES[0]: Shape(emulated, 1, 1)},
    }


@dataclass(frozen=True)
class Rival:
    """Who we are compared with."""

    name: str
    operator: Operator | None = None  # of the case's inputs, or of its own
    inputs: Callable[[Inputs], Inputs] | None = None  # its own, from the case's
    call: Callable[[Setting], Call] | None = None  # what is timed, where that is no operator
    devices: tuple[str, ...] = ("cpu", "cuda")
    dtypes: tuple[str, ...] | None = None  # None: all
    directions: tuple[str, ...] = DIRECTIONS
    targets: tuple[float | None, float | None] = (None, None)  # of both directions (Case.target)
    absent: str = ""  # why it cannot take part on this machine

    def takes_part(self, setting: Setting, direction: str) -> bool:
        known = self.dtypes is None or setting.dtype in self.dtypes
        return setting.device in self.devices and known and direction in self.directions


@dataclass(frozen=True, kw_only=True)
class Case:
    """One operator at one length. Cases of one family differ in length alone."""

    op: str
    family: str
    size: str
    shape: Shape
    unit: str = "T"  # of the length
    rivals: tuple[Rival, ...]
    directions: tuple[str, ...] = DIRECTIONS
    dtypes: tuple[str, ...] | None = None  # None: all
    memory_bound: bool = False

    @property
    def name(self) -> str:
        return f"{self.op} {self.family}, {self.unit}{self.shape.length}"

    @property
    def gates(self) -> tuple[str, ...]:
        """Operators whose cases in the registry must be right."""
        return (self.op,)

    def target(self, rival: Rival, direction: str, setting: Setting) -> float | None:
        """How many times as fast as the rival the project wants us: on the CPU, in training."""
        judged = setting == Setting("cpu", "float32") and self.size == "train"
        return rival.targets[self.directions.index(direction)] if judged else None

    def errors(self, setting: Setting) -> tuple[dict[str, float], float]:
        """Relative errors of this case, and what they may be at most."""
        raise NotImplementedError

    def call(self, rival: Rival | None, direction: str, setting: Setting) -> Call:
        """What is timed; None stands for our operator."""
        raise NotImplementedError

    def flops(self, direction: str) -> float:
        raise NotImplementedError

    def moved(self, direction: str, setting: Setting) -> float:
        """Bytes that any implementation moves; only where memory decides."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class OperatorCase(Case):
    """A differentiable operator, called as `testing.Case` calls it."""

    build: Callable[[torch.Generator, Shape], Inputs]  # float64
    forward_flops: Callable[[Shape], float]
    options: dict[str, Any] = field(default_factory=dict)
    orthogonalised: bool = False
    checker: Operator | None = None  # of the longer sizes, in float32; None: the first rival
    # what a call does with the operator, or with another of its signature
    body: Callable[[Callable[..., Any], Inputs, dict[str, Any]], Tensor] | None = None

    @property
    def entry(self) -> testing.Case:
        """The same call as the registry's tests know it."""
        return testing.Case(
            self.op,
            f"{self.family}, {self.size}",
            "benchmark",
            lambda generator: self.build(generator, self.shape),
            self.options,
            orthogonalised=self.orthogonalised,
        )

    def inputs(self, setting: Setting) -> Inputs:
        return self.entry.inputs(setting.torch_dtype, setting.torch_device)

    def run(self, function: Callable[..., Any], inputs: Inputs) -> Tensor:
        if self.body is not None:
            return self.body(function, inputs, self.options)
        return first(function(**inputs, **self.options))

    def ours(self, inputs: Inputs) -> Tensor:
        return self.run(getattr(atlas_ext, self.op), inputs)

    def call(self, rival: Rival | None, direction: str, setting: Setting) -> Call:
        if rival is not None and rival.call is not None:
            return rival.call(setting)
        operator, inputs = self.ours, self.inputs(setting)
        if rival is not None:
            assert rival.operator is not None
            operator = rival.operator
            inputs = rival.inputs(inputs) if rival.inputs is not None else inputs
        with torch.no_grad():
            shape = operator(inputs).shape
        generator = torch.Generator().manual_seed(1)
        grad = torch.randn(shape, generator=generator).to(setting.torch_device)
        return prepare(operator, inputs, direction, grad)

    def flops(self, direction: str) -> float:
        return self.forward_flops(self.shape) * (1 if direction == DIRECTIONS[0] else 3)

    def moved(self, direction: str, setting: Setting) -> float:
        inputs = self.inputs(setting)
        read = sum(tensor.nbytes for tensor in tensors_of(inputs))
        with torch.no_grad():
            written = self.ours(inputs).nbytes
        return read + written if direction == DIRECTIONS[0] else 3 * read + 2 * written

    def errors(self, setting: Setting) -> tuple[dict[str, float], float]:
        """The small size meets the reference, gradients included; longer ones the checker."""
        inputs, limit = self.inputs(setting), setting.tolerance(self.entry)
        if self.size == SIZES[0]:
            wide = map_inputs(Tensor.double, inputs)
            reference = getattr(atlas_ext.reference, self.op)
            with setting.active():
                actual = self._with_gradients(self.ours, inputs)
            expected = self._with_gradients(lambda held: self.run(reference, held), wide)
            names = ["output", *(f"grad {name}" for name in testing.named_tensors(inputs))]
        else:
            checker = self.checker or self.rivals[0].operator
            assert checker is not None
            with torch.no_grad():
                with setting.active():
                    actual = [self.ours(inputs)]
                expected = [checker(map_inputs(Tensor.float, inputs))]
            names = ["output"]
        found = zip(names, actual, expected, strict=True)
        return {name: testing.relative_error(a, b) for name, a, b in found}, limit

    def _with_gradients(self, operator: Operator, inputs: Inputs) -> list[Tensor]:
        leaves = map_inputs(lambda tensor: tensor.detach().requires_grad_(), inputs)
        with torch.no_grad():
            out = operator(inputs)
        generator = torch.Generator().manual_seed(2)
        grad = torch.randn(out.shape, generator=generator).bfloat16()  # exact in every dtype
        return evaluate(operator, leaves, DIRECTIONS[1], grad.to(out.device))


def cases_of(family: str, where: Shapes, device: str, **fields: Any) -> list[Case]:
    """A case for each length on `device`; `family` may hold {batch} and {heads}."""
    return [
        OperatorCase(family=family.format(**shape._asdict()), size=size, shape=shape, **fields)
        for size, shape in where[device].items()
    ]


def first(output: Tensor | tuple[Tensor, Any]) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
