"""One case in one direction: the rivals and ours in turns, then the memory of each."""

from __future__ import annotations

import time
from typing import Any

from bench.cases.base import Case, Rival
from bench.device import Device
from bench.setting import Setting
from bench.timing import Call, Neighbours, interleave, quartiles

OURS = "ours"
MOST_SECONDS = 30.0  # of the rounds of one case and direction
VERDICT_ROUNDS = 15  # a verdict needs as many
MOST_NEIGHBOURS = 0.1  # part of the machine that others may use under a verdict
Record = dict[str, Any]


def record_of(case: Case, direction: str, setting: Setting) -> Record:
    """What every line has, measured or not."""
    return {
        "op": case.op,
        "case": case.name,
        "family": case.family,
        "size": case.size,
        "unit": case.unit,
        "length": case.shape.length,
        "direction": direction,
        "dtype": setting.dtype,
    }


def require_right(case: Case, setting: Setting) -> str:
    """Why this case is not timed: its own errors; "" if it is right."""
    errors, limit = case.errors(setting)
    wrong = {name: f"{error:.1e}" for name, error in errors.items() if not error <= limit}
    return f"relative errors over {limit:.0e}: {wrong}" if wrong else ""


def first_call(case: Case, rival: Rival, direction: str, setting: Setting) -> tuple[Call, float]:
    """The rival's call, made once; what that took, its inputs and its compilation included."""
    start = time.perf_counter()
    call = case.call(rival, direction, setting)
    call()
    return call, time.perf_counter() - start


def measure(
    case: Case, direction: str, setting: Setting, device: Device, rounds: int, bounds: Record
) -> Record:
    """`bounds`: the ceilings measured in this run."""
    calls: dict[str, Call] = {}
    lines: dict[str, Record] = {}
    with setting.active():
        for rival in case.rivals:
            if not rival.takes_part(setting, direction):
                continue
            lines[rival.name] = {"name": rival.name, "target": None}
            if rival.absent:
                lines[rival.name]["absent"] = rival.absent
                continue
            try:
                calls[rival.name], seconds = first_call(case, rival, direction, setting)
            except Exception as error:  # whatever it is, the line says it
                lines[rival.name]["absent"] = failure(error)
                continue
            lines[rival.name] |= {
                "first_call": seconds,
                "target": case.target(rival, direction, setting),
            }
        calls[OURS] = case.call(None, direction, setting)
        neighbours = Neighbours()
        taken = interleave(calls, device.seconds, rounds, MOST_SECONDS)
        busy = neighbours.share()
        peaks = {name: device.peak_mib(call) for name, call in calls.items()}
    ours = quartiles(taken[OURS])[1]
    judged = len(taken[OURS]) >= VERDICT_ROUNDS and busy <= MOST_NEIGHBOURS
    for name, line in lines.items():
        if name in calls:
            line |= against(taken[name], taken[OURS], line["target"], judged)
            line["peak_mib"] = peaks[name]
    return record_of(case, direction, setting) | {
        "seconds": ours,
        "rounds": len(taken[OURS]),
        "clock": device.clock,
        "neighbours": busy,
        "peak_mib": peaks[OURS],
        "rivals": list(lines.values()),
        **rates(case, direction, setting, ours, bounds),
    }


def against(theirs: list[float], ours: list[float], target: float | None, judged: bool) -> Record:
    """Median and quartiles of the rounds' ratios, and the verdict where there is a target."""
    low, median, high = quartiles([b / a for a, b in zip(ours, theirs, strict=True)])
    return {
        "seconds": quartiles(theirs)[1],
        "ratio": median,
        "ratio_quartiles": [low, high],
        "met": median >= target if judged and target is not None else None,
    }


def rates(case: Case, direction: str, setting: Setting, seconds: float, bounds: Record) -> Record:
    """Operations or bytes in a second, and the share of the ceiling that bounds the case."""
    operations = case.flops(direction) / seconds
    found: Record = {"flops_per_second": operations, "of": f"mm {setting.dtype}"}
    if case.memory_bound:
        moved = case.moved(direction, setting) / seconds
        return found | {"bytes_per_second": moved, "of": "copy", "share": moved / bounds["copy"]}
    found["share"] = operations / bounds[found["of"]]
    if "fma" in bounds:
        found["share_of_fma"] = operations / bounds["fma"]
    return found


def failure(error: Exception) -> str:
    """In one short line: torch.compile's messages are pages."""
    text = " ".join(str(error).split())
    return f"failed: {type(error).__name__}: {text[:120]}"
