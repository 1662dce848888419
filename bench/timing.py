"""Interleaved timing: rival and ours take turns in one process, and each turn gives one ratio.

A machine that slows down for a second slows both; the median of the ratios hardly moves.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

Inputs = dict[str, Any]  # keyword arguments: tensors, and tuples of tensors
Operator = Callable[[Inputs], Tensor]
Call = Callable[[], object]  # what is timed
Key = TypeVar("Key")
DIRECTIONS = ("forward", "forward+backward")
DECODE = "decode"  # of operators that write their state in place
WARM_UP, LEAST_ROUNDS = 2, 3


def tensors_of(inputs: Inputs) -> list[Tensor]:
    """All tensors of the keyword arguments, in order."""
    flat: list[Tensor] = []
    for value in inputs.values():
        flat.extend(value if isinstance(value, tuple) else [value])
    return flat


def map_inputs(function: Callable[[Tensor], Tensor], inputs: Inputs) -> Inputs:
    return {
        name: tuple(map(function, value)) if isinstance(value, tuple) else function(value)
        for name, value in inputs.items()
    }


def evaluate(operator: Operator, inputs: Inputs, direction: str, grad: Tensor) -> list[Tensor]:
    """The output; with "forward+backward" also the gradients of all inputs that ask for one."""
    if direction == "forward":
        with torch.no_grad():
            return [operator(inputs)]
    out = operator(inputs)
    leaves = [tensor for tensor in tensors_of(inputs) if tensor.requires_grad]
    return [out, *torch.autograd.grad(out, leaves, grad.to(out.dtype))]


def prepare(operator: Operator, inputs: Inputs, direction: str, grad: Tensor) -> Call:
    """One measured call. Freeing the results belongs to it, for everybody alike."""
    leaves = map_inputs(lambda t: t.detach().requires_grad_(direction != "forward"), inputs)

    def call() -> None:
        evaluate(operator, leaves, direction, grad)

    return call


def stopwatch(call: Call) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def interleave(
    calls: Mapping[Key, Call],
    seconds_of: Callable[[Call], float],
    rounds: int,
    most_seconds: float = math.inf,
) -> dict[Key, list[float]]:
    """Seconds of each round, in which all take their turn; ours, the last, right after the rivals.

    Rounds end early, with LEAST_ROUNDS at the least, once they have taken `most_seconds`.
    """
    taken: dict[Key, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(WARM_UP + rounds):
        enough = done >= WARM_UP + LEAST_ROUNDS
        if enough and time.perf_counter() - start > most_seconds:
            break
        for name, call in calls.items():
            taken[name].append(seconds_of(call))
    return {name: seconds[WARM_UP:] for name, seconds in taken.items()}


class Neighbours:
    """How much of the machine others used since this object was made.

    Threads that wait for each other at a barrier, as those of torch.mm do, suffer far more from a
    busy core than threads that do not: on a busy machine ratios say little.
    """

    def __init__(self) -> None:
        self._start = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float]:
        """Clock, CPU seconds of all (stolen ones too), CPU seconds of this process."""
        ticks = [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        busy = (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")  # idle, iowait
        return time.perf_counter(), busy, time.process_time()

    def share(self) -> float:
        """Part of all cores, 0 to 1."""
        clock, busy, own = (b - a for a, b in zip(self._start, self._read(), strict=True))
        return max(0.0, busy - own) / (clock * (os.cpu_count() or 1))


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, statistics.median(values), high
