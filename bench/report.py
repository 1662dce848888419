"""The table, the comparison and the plot, all made from a benchmark's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Report = dict[str, Any]  # what pytest-benchmark stored

HEADER = (
    "case",
    "direction",
    "ours ms",
    "against",
    "its ms",
    "ratio [quartiles]",
    "target",
    "verdict",
    "GFLOP/s",
    "of ceiling",
    "of FMA peak",
    "peak MiB ours / its",
)


def markdown(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def runs_of(report: Report) -> list[dict[str, Any]]:
    """What the cases recorded; a case that was skipped or wrong recorded nothing."""
    return [run["extra_info"] for run in report["benchmarks"] if run["extra_info"]]


def machine_lines(report: Report) -> list[str]:
    machine = report["machine_info"]["atlas_ext"]
    commit, ceilings = report["commit_info"], machine["ceilings"]
    fma = ceilings["fma_gflops"]
    busy = max((run["neighbours"] for run in runs_of(report)), default=0.0)
    return [
        f"{machine['cpu_model']}, {machine['threads']} threads; atlas_ext {machine['version']} "
        f"({(commit['id'] or 'unknown')[:9]}{', modified' if commit['dirty'] else ''}, "
        f"{machine['isa']}, g++ {machine['compiler']}); torch {machine['torch']} "
        f"({machine['torch_isa']}); Python {report['machine_info']['python_version']}; "
        f"{report['datetime'][:16]}.",
        f"Ceilings measured in this run: sgemm 2048³ {ceilings['sgemm_gflops']:.0f} GFLOP/s, "
        f"FMA peak {'not measured' if fma is None else f'{fma:.0f} GFLOP/s'}, "
        f"clone into fresh pages {ceilings['clone_gbs']:.1f} GB/s, copy into touched pages "
        f"{ceilings['copy_gbs']:.1f} GB/s (bytes read and written).",
        f"Other processes used up to {busy:.0%} of the machine during a case"
        f"{': no verdict for those above 10%' if busy > 0.1 else ''}.",
    ]


def verdict(rival: dict[str, Any]) -> str:
    if rival["target"] is None:
        return "–"
    return {True: "met", False: "not met", None: "none"}[rival["met"]]


def rows_of(run: dict[str, Any], ceilings: dict[str, float | None]) -> list[tuple[str, ...]]:
    """One row for each rival."""
    rows: list[tuple[str, ...]] = []
    for rival in run["rivals"]:
        bound = "≤" if rival["at_most"] else "≥"
        peaks = rival.get("peaks_mib") or [
            run["peak_mib"].get(name) for name in ("ours", rival["name"])
        ]
        seconds = rival["seconds"]
        rows.append(
            (
                run["case"],
                run["direction"],
                f"{1e3 * run['seconds']:.2f}",
                rival["name"],
                "–" if seconds is None else f"{1e3 * seconds:.2f}",
                ratio_of(rival),
                "–" if rival["target"] is None else f"{bound} {rival['target']}",
                verdict(rival),
                *speed_of(run, ceilings),
                " / ".join("–" if peak is None else f"{peak:.0f}" for peak in peaks),
            )
        )
    return rows


def ratio_of(rival: dict[str, Any]) -> str:
    if rival["ratio"] is None:
        return "–"
    low, high = rival["ratio_quartiles"]
    return f"{rival['ratio']:.2f} [{low:.2f}, {high:.2f}]"


def speed_of(run: dict[str, Any], ceilings: dict[str, float | None]) -> tuple[str, str, str]:
    """Our rate, and its shares of sgemm (of memcpy, where memory decides) and of the FMA peak."""
    rate = run["flops"] / run["seconds"] / 1e9
    share, fma = rate / (ceilings["sgemm_gflops"] or float("nan")), ceilings["fma_gflops"]
    shown = f"{rate:.1f}"
    if run.get("tokens_per_second"):
        shown += f" ({run['tokens_per_second']:.0f} tokens/s)"
    if run["memory_bound"]:
        copy = next(rival for rival in run["rivals"] if rival["name"] == "memcpy")
        return shown, f"{copy['ratio']:.0%} memcpy", "–"
    return shown, f"{share:.0%} sgemm", "–" if fma is None else f"{rate / fma:.0%}"


def table(report: Report) -> str:
    ceilings = report["machine_info"]["atlas_ext"]["ceilings"]
    rows = [row for run in runs_of(report) for row in rows_of(run, ceilings)]
    return markdown([HEADER, *rows])


def comparison(now: Report, then: Report) -> str:
    """By the ratio to the same rival in the same process: a slower day slows the rival too."""
    earlier = {(run["case"], run["direction"]): run for run in runs_of(then)}
    rows: list[tuple[str, ...]] = [
        (
            "case",
            "direction",
            "then ms",
            "now ms",
            "against",
            "then ratio",
            "now ratio",
            "faster by",
        )
    ]
    for run in runs_of(now):
        old = earlier.get((run["case"], run["direction"]))
        if old is None:
            continue
        was, rival = old["rivals"][0], run["rivals"][0]
        if None in (was["ratio"], rival["ratio"]) or rival["seconds"] is None:
            continue
        gain = rival["ratio"] / was["ratio"]
        rows.append(
            (
                run["case"],
                run["direction"],
                f"{1e3 * old['seconds']:.2f}",
                f"{1e3 * run['seconds']:.2f}",
                rival["name"],
                f"{was['ratio']:.2f}",
                f"{rival['ratio']:.2f}",
                f"{1 / gain if rival['at_most'] else gain:.2f}",
            )
        )
    return markdown(rows)


def plot(report: Report, path: Path) -> None:
    """Bars of the ratios with their quartiles, and a mark at each target."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [(run, rival) for run in runs_of(report) for rival in run["rivals"]]
    bars = [(run, rival) for run, rival in lines if rival["ratio"] is not None]
    figure, axes = pyplot.subplots(figsize=(11, 1.5 + 0.42 * len(bars)), layout="constrained")
    for height, (run, rival) in enumerate(bars):
        low, high = rival["ratio_quartiles"]
        colour = "tab:blue" if run["direction"] == "forward" else "tab:orange"
        error = [[rival["ratio"] - low], [high - rival["ratio"]]]
        axes.barh(height, rival["ratio"], 0.7, color=colour, xerr=error)
        if rival["target"] is not None:
            axes.plot([rival["target"]] * 2, [height - 0.45, height + 0.45], color="black")
    labels = [f"{run['case']}\n{run['direction']}, against {rival['name']}" for run, rival in bars]
    axes.set_yticks(range(len(bars)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel(
        "time of the rival / ours (against our own or an allowance: ours / its); line: target"
    )
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
