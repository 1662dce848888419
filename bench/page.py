"""docs/benchmarks.md, made from stored results: a section for each device and operator."""

from __future__ import annotations

import json
from pathlib import Path

from bench import plots, report
from bench.cases import OPS
from bench.report import Report
from bench.setting import DEVICES

HEAD = """# Benchmarks

`python -m bench.run --page docs/benchmarks.md` measures everything and writes this page, its
results and its plots; nothing here is edited by hand. With `--op` and `--device` the sections of
these alone are renewed. [performance.md](performance.md) says what is measured, and how.

A cell of a rival: its time; how many times as long as ours it is, the median of the rounds' ratios
[quartiles]; the memory that its call needs. *ours, MiB* is the memory of our call. Both are what a
call holds at its peak beside its inputs, results included. Slopes are those of log time over log
length, by least squares: 1 is linear, 2 quadratic."""
LISTS = ("gates", "refused", "missing", "runs")


def keep(found: Report, folder: Path) -> None:
    """Stores each operator's part as `<device>-<op>.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for op in found["ops"]:
        part = found | {name: [e for e in found[name] if e["op"] == op] for name in LISTS}
        if not any(part[name] for name in LISTS):
            continue  # its turn comes
        path = folder / f"{found['device']}-{op}.json"
        path.write_text(json.dumps(part, indent=1, ensure_ascii=False) + "\n")


def stored(folder: Path) -> dict[str, Report]:
    """The parts by their names, in the order of devices and operators."""
    names = [f"{device}-{op}" for device in DEVICES for op in OPS]
    paths = {name: folder / f"{name}.json" for name in names}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def write(path: Path) -> None:
    """The page and its plots, from the results in the folder of its name."""
    folder = path.with_suffix("")
    parts = stored(folder)
    for found in parts.values():
        plots.plot(found, folder)
    path.write_text(render(parts, folder.name))


def render(parts: dict[str, Report], folder: str) -> str:
    sections = [section(found, f"{folder}/{name}") for name, found in parts.items()]
    return "\n\n".join([HEAD, *unmeasured(parts), *sections]) + "\n"


def unmeasured(parts: dict[str, Report]) -> list[str]:
    """What no section is about."""
    lines = []
    for device in ("cpu", "cuda"):
        absent = [op for op in OPS if f"{device}-{op}" not in parts]
        if absent:
            lines.append(f"Not measured yet on {device}: {', '.join(absent)}.")
    return lines


def command(found: Report, op: str) -> str:
    """The arguments of a run that renews this section."""
    words = " ".join(found["command"])
    return (
        words.replace(f"--op {' '.join(found['ops'])}", f"--op {op}") + " --page docs/benchmarks.md"
    )


def section(found: Report, stem: str) -> str:
    """Plots, and a table for each family; `stem`: of the plots' paths."""
    device, op = stem.rpartition("/")[2].split("-", 1)
    measured = f"`python -m bench.run {command(found, op)}`"
    parts = [f"## {op}, {device}", measured, *report.machine_lines(found)]
    if not found["finished"]:
        parts.append("**This run was cut short**: below is what it had measured.")
    parts.append("The tests' registry, before anything was timed: " + report.gate_text(found))
    members = report.families(found)
    for dtype in dict.fromkeys(family[0]["dtype"] for family in members):
        parts.append(f"![time over length]({stem}-{dtype}-time.png)")
        parts.append(f"![memory over length]({stem}-{dtype}-memory.png)")
    for family in members:
        parts.append(f"**{family[0]['family']}**, {family[0]['dtype']}")
        parts.append(report.family_table(family))
        notes = [f"Slopes: {report.slopes(family)}."] if report.slopes(family) else []
        parts += [*notes, *(f"{line}." for line in report.absences(family))]
    wanted = report.targets(found)
    return "\n\n".join([*parts, *(["Targets:", wanted] if wanted else [])])
