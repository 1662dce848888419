"""The timed runs as pytest-benchmark tests: `python -m bench.run` starts them and reads their JSON.

A round of pytest-benchmark times our operator; every rival has its turn just before, in the round's
setup. Targets are recorded, never asserted: only wrong results fail.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from bench import memory
from bench.check import require_correct
from bench.conftest import LEAST_ROUNDS, Settings
from bench.shapes import CASES, BenchCase, Rival, memcpy
from bench.timing import DIRECTIONS, Neighbours, Turns, prepare, quartiles

WARM_UP = 2
MOST_NEIGHBOURS = 0.1  # part of the machine that others may use under a verdict
_checked: dict[str, dict[str, float]] = {}


def check_once(case: BenchCase) -> dict[str, float]:
    if case.name not in _checked:
        _checked[case.name] = require_correct(case)
    return _checked[case.name]


def rival_call(case: BenchCase, rival: Rival, direction: str) -> Callable[[], None]:
    if rival.operator is memcpy:
        out = torch.randn(case.out_shape(case.length))
        return prepare(memcpy, {"out": out}, "forward", out)
    operator = rival.operator or case.ours
    return prepare(operator, case.inputs(rival.length), direction, case.grad(rival.length))


def compare(
    rival: Rival, ours: list[float], theirs: list[float], target: float | None, neighbours: float
) -> dict[str, Any]:
    """One line of the table: the rival's time, the paired ratios' quartiles and the verdict."""
    ratios = [rival.ratio(a, b) for a, b in zip(ours, theirs, strict=True)]
    low, median, high = quartiles(ratios)
    judged = len(ratios) >= LEAST_ROUNDS and neighbours <= MOST_NEIGHBOURS
    return {
        "name": rival.name,
        "seconds": quartiles(theirs)[1],
        "ratio": median,
        "ratio_quartiles": [low, high],
        "ratios": ratios,
        "at_most": rival.at_most,
        "target": target,
        "met": rival.met(median, target) if judged and target is not None else None,
    }


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_op(case: BenchCase, direction: str, settings: Settings, benchmark: Any) -> None:
    if case.missing:
        pytest.skip(case.missing)
    errors = check_once(case)
    which = DIRECTIONS.index(direction)
    print(f"\n{case.name}: largest relative error {max(errors.values()):.1e}, timing {direction}")
    turns = Turns({r.name: (rival_call(case, r, direction), r.repeat) for r in case.rivals})
    ours = prepare(case.ours, case.inputs(), direction, case.grad())
    rounds = settings.rounds
    neighbours = Neighbours()
    benchmark.pedantic(ours, setup=turns.take, rounds=rounds, warmup_rounds=WARM_UP)
    busy = neighbours.share()

    seconds = list(benchmark.stats.stats.data)
    peaks = {}
    if settings.memory:
        operators = [
            memory.OURS,
            *(r.name for r in case.rivals if r.operator not in (None, memcpy)),
        ]
        for name in operators:
            peaks[name] = memory.peak_mib(case, name, direction, settings.threads)
    benchmark.extra_info.update(
        case=case.name,
        op=case.op,
        direction=direction,
        seconds=quartiles(seconds)[1],
        flops=case.flops(case.length) * (1 if direction == "forward" else 3),
        memory_bound=case.memory_bound,
        errors=errors,
        tolerance=case.tolerance,
        peak_mib=peaks,
        neighbours=busy,
        rivals=[
            compare(r, seconds, turns.seconds(r.name, rounds), r.targets[which], busy)
            for r in case.rivals
        ],
    )
