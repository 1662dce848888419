"""The timed runs as pytest-benchmark tests: `python -m bench.run` starts them and reads their JSON.

A round of pytest-benchmark times our operator; every rival has its turn just before, in the round's
setup. Targets are recorded, never asserted: only wrong results fail.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench import memory
from bench.cases import CASES
from bench.cases.base import Case, Rival
from bench.check import require_correct
from bench.conftest import LEAST_ROUNDS, Settings
from bench.timing import DIRECTIONS, Neighbours, Turns, quartiles

WARM_UP = 2
MOST_NEIGHBOURS = 0.1  # part of the machine that others may use under a verdict
PEAKS = 3  # processes that measure a peak which has a target
MIB = 1 << 20
_checked: dict[str, dict[str, float]] = {}


def check_once(case: Case) -> dict[str, float]:
    if case.name not in _checked:
        _checked[case.name] = require_correct(case)
    return _checked[case.name]


def verdict(
    rival: Rival, ratios: list[float], target: float | None, judged: bool
) -> dict[str, Any]:
    """What every line of the table has: the ratios' median and quartiles, and the verdict."""
    low, median, high = quartiles(ratios)
    return {
        "name": rival.name,
        "ratio": median,
        "ratio_quartiles": [low, high],
        "ratios": ratios,
        "at_most": rival.at_most,
        "target": target,
        "met": rival.met(median, target) if judged and target is not None else None,
    }


def compare_times(
    rival: Rival, ours: list[float], theirs: list[float], target: float | None, neighbours: float
) -> dict[str, Any]:
    ratios = [rival.ratio(a, b) for a, b in zip(ours, theirs, strict=True)]
    judged = len(ratios) >= LEAST_ROUNDS and neighbours <= MOST_NEIGHBOURS
    return verdict(rival, ratios, target, judged) | {"seconds": quartiles(theirs)[1]}


def compare_peaks(
    case: Case, rival: Rival, direction: str, target: float | None, threads: int
) -> dict[str, Any]:
    """Inputs and what the call adds to them, against what nobody can do without."""
    assert rival.allowance is not None
    parts = rival.allowance(case.length)
    allowed = sum(parts.values()) / MIB
    found = [memory.peak_mib(case, memory.OURS, direction, threads) for _ in range(PEAKS)]
    peaks = [parts["inputs"] / MIB + peak for peak in found if peak is not None]
    if len(peaks) < PEAKS:
        return absent(rival, target, "the process that measures it failed")
    line = verdict(rival, [peak / allowed for peak in peaks], target, True)
    return line | {"seconds": None, "peaks_mib": [quartiles(peaks)[1], allowed]}


def absent(rival: Rival, target: float | None, reason: str) -> dict[str, Any]:
    line = {"name": f"{rival.name}: {reason}", "seconds": None, "ratio": None, "met": None}
    return line | {"at_most": rival.at_most, "target": target}


@pytest.mark.parametrize(
    ("case", "direction"),
    [
        pytest.param(case, direction, id=f"{case.name}-{direction}")
        for case in CASES
        for direction in case.directions
    ],
)
def test_op(case: Case, direction: str, settings: Settings, benchmark: Any) -> None:
    if case.missing:
        pytest.skip(case.missing)
    errors = check_once(case)
    which = DIRECTIONS.index(direction)
    print(f"\n{case.name}: largest relative error {max(errors.values()):.1e}, timing {direction}")
    timed = [r for r in case.rivals if not r.absent and r.allowance is None]
    turns = Turns({r.name: (case.call(r, direction), r.repeat) for r in timed})
    ours = case.call(None, direction)
    rounds = min(settings.rounds, case.most_rounds)
    neighbours = Neighbours()
    benchmark.pedantic(ours, setup=turns.take, rounds=rounds, warmup_rounds=WARM_UP)
    busy = neighbours.share()

    seconds = list(benchmark.stats.stats.data)
    peaks = {}
    if settings.memory:
        names = [memory.OURS, *(r.name for r in timed if r.peak)]
        peaks = {name: memory.peak_mib(case, name, direction, settings.threads) for name in names}
    lines = []
    for rival in case.rivals:
        target = rival.targets[which]
        if rival.absent:
            lines.append(absent(rival, target, rival.absent))
        elif rival.allowance is None:
            theirs = turns.seconds(rival.name, rounds)
            lines.append(compare_times(rival, seconds, theirs, target, busy))
        elif settings.memory:
            lines.append(compare_peaks(case, rival, direction, target, settings.threads))
        else:
            lines.append(absent(rival, target, "not measured"))
    median = quartiles(seconds)[1]
    benchmark.extra_info.update(
        case=case.name,
        op=case.op,
        direction=direction,
        seconds=median,
        flops=case.flops(direction),
        tokens_per_second=None if case.tokens is None else case.tokens / median,
        memory_bound=case.memory_bound,
        errors=errors,
        tolerance=case.tolerance,
        peak_mib=peaks,
        neighbours=busy,
        rivals=lines,
    )
