"""Numbers and tables as the pages show them."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from .training import Result

DIVERGED = "†"
FOOTNOTE = f"{DIVERGED}: with a run whose loss was no number in the end; its answers count as well."


def markdown(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; with a footnote where one of its cells has the mark."""
    header = list(header)
    lines = [header, ["---"] * len(header), *map(list, rows)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{text}\n\n{FOOTNOTE}" if DIVERGED in text else text


def mean_spread(values: list[float], unit: str = "") -> str:
    """Mean ± standard deviation over seeds, in percent."""
    mean = f"{100 * statistics.mean(values):.1f}"
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return mean + spread + unit


def with_spread(row: dict[str, Any]) -> str:
    return f"{row['error']:.2f} ± {row['spread']:.2f}"


def mark(runs: Iterable[Result]) -> str:
    """Behind a number from these runs: says that one of them diverged."""
    return f" {DIVERGED}" if any(run["loss"] is None for run in runs) else ""
