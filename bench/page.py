"""docs/benchmarks.md, made from the stored results of each device."""

from __future__ import annotations

import json
from pathlib import Path

from bench import report
from bench.report import Report

TITLES = {"cpu": "CPU", "cuda": "CUDA"}
HEAD = """# Benchmarks

Written by the command below; nothing here is edited by hand. [performance.md](performance.md) says what is measured, and how.

```
{command}
```

A cell of a rival: its time; how many times its time ours is, as the median of the rounds' ratios [quartiles]; the memory that its call needs. *ours, MiB*
is the memory of our call. Both count what a call holds at its peak beside its inputs, results included. Slopes are those of log time over
log length, by least squares: 1 is linear, 2 quadratic."""


def render(folder: Path) -> str:
    """The page of the results in `folder`: `cpu.json`, `cuda.json`, and their plots."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    sections = [section(found, folder.name) for found in reports if found["device"] in TITLES]
    commands = [f"python -m bench.run {arguments(found)}" for found in reports]
    return "\n\n".join([HEAD.format(command="\n".join(commands)), *sections]) + "\n"


def arguments(found: Report) -> str:
    return " ".join([*found["command"], "--page", "docs/benchmarks.md"])


def section(found: Report, folder: str) -> str:
    parts = [f"## {TITLES[found['device']]}", *report.machine_lines(found)]
    parts.append("Before anything was timed:\n\n" + listed(report.gate_lines(found)))
    for op in dict.fromkeys(run["op"] for run in found["runs"]):
        parts += operator(found, op, folder)
    wanted = report.targets(found)
    if wanted:
        parts += ["### Targets", wanted]
    return "\n\n".join(parts)


def operator(found: Report, op: str, folder: str) -> list[str]:
    """Plots of one operator, and a table for each family."""
    parts = [f"### {op}"]
    members = [family for family in report.families(found) if family[0]["op"] == op]
    for dtype in dict.fromkeys(family[0]["dtype"] for family in members):
        stem = f"{folder}/{found['device']}-{op}-{dtype}"
        parts.append(f"![time over length]({stem}-time.png)")
        parts.append(f"![memory over length]({stem}-memory.png)")
    for family in members:
        parts.append(f"**{family[0]['family']}**, {family[0]['dtype']}")
        parts.append(report.family_table(family))
        notes = [f"slopes: {report.slopes(family)}"] if report.slopes(family) else []
        parts.append(listed([*notes, *report.absences(family)]))
    return parts


def listed(lines: list[str]) -> str:
    return "\n".join(f"{'  ' if line.startswith('  ') else ''}* {line.strip()}" for line in lines)
