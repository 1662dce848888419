"""The tables of a run, made from its JSON."""

from __future__ import annotations

import math
from typing import Any

from bench.measure import MOST_NEIGHBOURS, OURS, Record

Report = dict[str, Any]  # what run.py stores
Family = list[Record]  # runs of one operator, family and dtype, at several lengths


def markdown(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def families(report: Report) -> list[Family]:
    """The runs, grouped."""
    found: dict[tuple[str, str, str], Family] = {}
    for run in report["runs"]:
        found.setdefault((run["op"], run["family"], run["dtype"]), []).append(run)
    return list(found.values())


def names_of(family: Family) -> list[str]:
    """All rivals of a family, in order."""
    return list(dict.fromkeys(rival["name"] for run in family for rival in run["rivals"]))


def rival_of(run: Record, name: str) -> Record:
    """The rival's line, empty where it took no part."""
    return next((rival for rival in run["rivals"] if rival["name"] == name), {})


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def mebibytes(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def disturbed(run: Record) -> bool:
    """Others had so much of the processors that wall times say nothing about ours and theirs."""
    return bool(run["clock"] == "wall" and run["neighbours"] > MOST_NEIGHBOURS)


def cell(run: Record, rival: Record) -> str:
    if rival.get("ratio") is None:
        return "–"
    low, high = rival["ratio_quartiles"]
    ratio = f"{rival['ratio']:.2f} [{low:.2f}, {high:.2f}]"
    if disturbed(run):
        ratio = "no ratio"
    return f"{milliseconds(rival['seconds'])} ms; {ratio}; {mebibytes(rival['peak_mib'])} MiB"


def rate(run: Record) -> tuple[str, str]:
    """What decides the case: GFLOP/s or GB/s, and the share of its ceiling."""
    share = f"{run['share']:.0%} {run['of']}"
    if "share_of_fma" in run:
        share += f", {run['share_of_fma']:.0%} FMA"
    if "bytes_per_second" in run:
        return f"{run['bytes_per_second'] / 1e9:.1f} GB/s", share
    return f"{run['flops_per_second'] / 1e9:.0f} GFLOP/s", share


def family_table(family: Family) -> str:
    """A row for each length and direction, a column for each rival."""
    names = names_of(family)
    unit = family[0]["unit"].strip()
    header = (unit, "direction", "ours, ms", "ours, MiB", *names, "rate", "of ceiling", "rounds")
    rows = [header]
    for run in family:
        busy = " †" if run["neighbours"] > MOST_NEIGHBOURS else ""
        rows.append(
            (
                *(str(run["length"]), run["direction"], milliseconds(run["seconds"]) + busy),
                mebibytes(run["peak_mib"]),
                *(cell(run, rival_of(run, name)) for name in names),
                *(*rate(run), str(run["rounds"])),
            )
        )
    return markdown(rows)


def absences(family: Family) -> list[str]:
    """Why a rival has no numbers: each reason once."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in family:
        for rival in run["rivals"]:
            if "absent" in rival:
                where = f"{run['unit']}{run['length']} {run['direction']}"
                found.setdefault((rival["name"], rival["absent"]), []).append(where)
    return [
        f"{name}: {reason}" + ("" if len(where) == len(family) else f" ({', '.join(where)})")
        for (name, reason), where in found.items()
    ]


def series(family: Family, direction: str, name: str, what: str) -> list[tuple[int, float]]:
    """(length, seconds or peak_mib) of ours or of a rival."""
    runs = [run for run in family if run["direction"] == direction]
    lines = [(run["length"], run if name == OURS else rival_of(run, name)) for run in runs]
    return [(length, line[what]) for length, line in lines if line.get(what) is not None]


def slope(points: list[tuple[int, float]]) -> float | None:
    """Of log(value) over log(length), least squares; None without two lengths."""
    if len({length for length, _ in points}) < 2:
        return None
    xs = [math.log(length) for length, _ in points]
    ys = [math.log(value) for _, value in points]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((a - x) ** 2 for a in xs)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / over


def directions_of(family: Family) -> list[str]:
    return list(dict.fromkeys(run["direction"] for run in family))


def slopes(family: Family) -> str:
    """Of the time over the length, for all who took part."""
    parts = []
    for name in (OURS, *names_of(family)):
        values = {d: slope(series(family, d, name, "seconds")) for d in directions_of(family)}
        shown = [f"{value:.2f} {d}" for d, value in values.items() if value is not None]
        if shown:
            parts.append(f"{name} {', '.join(shown)}")
    return "; ".join(parts)


def targets(report: Report) -> str:
    """Every ratio that the project asks for, and what came of it."""
    rows: list[tuple[str, ...]] = [("case", "direction", "against", "wanted", "found", "verdict")]
    for run in report["runs"]:
        for rival in run["rivals"]:
            if rival["target"] is None or rival.get("ratio") is None or disturbed(run):
                continue
            verdict = {True: "met", False: "not met", None: "none"}[rival["met"]]
            rows.append(
                (
                    *(run["case"], run["direction"], rival["name"]),
                    *(f"≥ {rival['target']}", f"{rival['ratio']:.2f}", verdict),
                )
            )
    return markdown(rows) if len(rows) > 1 else ""


def comparison(now: Report, then: Report) -> str:
    """By the ratio to the same rival in the same process: a slower day slows the rival too."""
    earlier = {(run["case"], run["direction"], run["dtype"]): run for run in then["runs"]}
    rows: list[tuple[str, ...]] = [
        ("case", "dtype", "direction", "then ms", "now ms", "against", "then", "now", "faster by")
    ]
    for run in now["runs"]:
        old = earlier.get((run["case"], run["direction"], run["dtype"]))
        if old is None:
            continue
        for rival in run["rivals"]:
            was = rival_of(old, rival["name"])
            if rival.get("ratio") is None or was.get("ratio") is None:
                continue
            if disturbed(run) or disturbed(old):
                continue
            rows.append(
                (
                    *(run["case"], run["dtype"], run["direction"]),
                    *(milliseconds(old["seconds"]), milliseconds(run["seconds"]), rival["name"]),
                    *(f"{was['ratio']:.2f}", f"{rival['ratio']:.2f}"),
                    f"{rival['ratio'] / was['ratio']:.2f}",
                )
            )
            break
    return markdown(rows)


def machine_lines(report: Report) -> list[str]:
    machine, bounds = report["machine"], report["ceilings"]
    threads = f", {machine['threads']} threads" if machine["threads"] else ""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    shown = [
        f"{name} {value / 1e9:.0f} {'GB/s' if name in ('copy', 'clone') else 'GFLOP/s'}"
        for name, value in bounds.items()
    ]
    lines = [f"{machine['name']}{threads}; {versions}; {report['date']}."]
    if shown:
        lines.append(f"Ceilings measured in this run: {', '.join(shown)}.")
    shares = [run["neighbours"] for run in report["runs"]]
    if shares:
        above = sum(share > MOST_NEIGHBOURS for share in shares)
        lines.append(
            f"Other processes used {min(shares):.0%} to {max(shares):.0%} of the processors during "
            f"a line; {above} of {len(shares)} lines had more than {MOST_NEIGHBOURS:.0%} (†: no "
            f"verdict). Times are those of the {report['runs'][0]['clock']}'s clock."
        )
    return lines


def gate_lines(report: Report) -> list[str]:
    """What the registry said, and what was therefore not timed."""
    lines = []
    for gate in report["gates"]:
        found = f"{gate['op']}, {gate['dtype']}: "
        if not gate["failed"]:
            lines.append(found + f"{gate['cases']} cases right")
            continue
        lines.append(found + f"REFUSED: {len(gate['failed'])} of {gate['cases']} cases wrong")
        lines += [f"  {failure}" for failure in gate["failed"]]
    for case in report["refused"]:
        lines.append(f"{case['case']}, {case['dtype']}: REFUSED: {case['reason']}")
    missing = [f"{m['reason']} ({m['dtype']}): nothing is timed" for m in report["missing"]]
    return [*lines, *missing]


def gate_text(report: Report) -> str:
    return "; ".join(line.strip() for line in gate_lines(report)) + "."


def tables(report: Report) -> str:
    """All of it, for the terminal."""
    parts = ["\n".join(machine_lines(report)), "\n".join(gate_lines(report))]
    for family in families(report):
        run = family[0]
        parts.append(f"{run['op']} {run['family']}, {run['dtype']}\n\n{family_table(family)}")
        if slopes(family):
            parts.append(f"Slopes of time: {slopes(family)}")
        parts += absences(family)
    return "\n\n".join(part for part in [*parts, targets(report)] if part)
