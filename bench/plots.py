"""Time and memory over the length, on logarithmic axes: a figure for each operator and dtype."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.measure import OURS
from bench.report import Family, Report, directions_of, families, names_of, series, slope

COLUMNS = 3
MEASURES = {"time": ("seconds", 1e3, "ms"), "memory": ("peak_mib", 1.0, "MiB beside the inputs")}
STYLES = {"forward": "-", "forward+backward": "--", "decode": "-"}


def plot(report: Report, folder: Path) -> list[Path]:
    """Writes `<device>-<op>-<dtype>-{time,memory}.png`; returns the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, str], list[Family]] = {}
    for family in families(report):
        groups.setdefault((family[0]["op"], family[0]["dtype"]), []).append(family)
    paths = []
    for (op, dtype), members in groups.items():
        for measure in MEASURES:
            path = folder / f"{report['device']}-{op}-{dtype}-{measure}.png"
            _figure(members, measure, f"{op}, {dtype}, {report['device']}", path)
            paths.append(path)
    return paths


def _figure(members: list[Family], measure: str, title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(COLUMNS, len(members))
    rows = -(-len(members) // columns)
    figure, grid = pyplot.subplots(
        rows,
        columns,
        figsize=(5.6 * columns, 0.4 + 4.4 * rows),
        layout="constrained",
        squeeze=False,
    )
    figure.suptitle(f"{title}: {measure}")
    for axes in grid.flat[len(members) :]:
        axes.remove()
    for family, axes in zip(members, grid.flat, strict=False):
        _panel(axes, family, measure)
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _panel(axes: Any, family: Family, measure: str) -> None:
    what, factor, label = MEASURES[measure]
    for index, name in enumerate((OURS, *names_of(family))):
        for direction in directions_of(family):
            points = series(family, direction, name, what)
            if not points:
                continue
            lengths, values = zip(*points, strict=True)
            axes.plot(
                lengths,
                [factor * value for value in values],
                STYLES[direction],
                color=f"C{index}",
                marker="o" if name == OURS else ".",
                linewidth=2 if name == OURS else 1,
                label=_label(name, direction, slope(points) if measure == "time" else None),
            )
    axes.set_title(family[0]["family"], fontsize=9)
    axes.set_xscale("log", base=2)
    if measure == "time":
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=1.0)  # linear below 1 MiB: some need none
        axes.set_ylim(bottom=0)
    axes.set_xlabel(family[0]["unit"].strip())
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def _label(name: str, direction: str, found: float | None) -> str:
    return f"{name}, {direction}" + ("" if found is None else f": slope {found:.2f}")
