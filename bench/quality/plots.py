"""Pictures of the results."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .capacity import STORED
from .models import ABLATIONS, MODELS
from .tasks import LONG, MAD, TASKS
from .training import Result, Results, read

DPI = 130


@contextmanager
def figure(path: Path, *shape: int, size: tuple[float, float]) -> Iterator[Any]:
    """Axes of a new figure, written to `path` at the end."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn, axes = pyplot.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    yield axes
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=DPI)
    pyplot.close(drawn)


def outside_legend(axes: Any) -> None:
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)


def recall(by_model: dict[str, list[Result]], path: Path) -> None:
    """Accuracy against the number of pairs: models on the left, Atlas's ablations on the right."""
    groups = (
        ("models", [name for name in by_model if name not in ABLATIONS]),
        ("Atlas and its ablations", [n for n in by_model if n in ("atlas", *ABLATIONS)]),
    )
    groups = tuple(group for group in groups if group[1])
    with figure(path, 1, len(groups), size=(6.5 * len(groups), 4.5)) as grid:
        for axes, (title, names) in zip(grid[0], groups, strict=True):
            accuracy_of_parts(axes, {name: by_model[name] for name in names})
            axes.set_xlabel("key-value pairs in the sequence")
            axes.set_title(f"MQAR: {title}")
            outside_legend(axes)


def style(name: str) -> dict[str, Any]:
    """How a model is drawn in every picture."""
    number = list(MODELS).index(name)
    color, width = ("black", 2.5) if name == "atlas" else (f"C{number % 10}", 1.2)
    return {"label": name, "marker": "o^svD"[number % 5], "color": color, "linewidth": width}


def means_and_bars(scores: list[list[float]]) -> tuple[list[float], list[float]]:
    """Of the seeds' shares, in percent, with their standard deviation."""
    means = [100 * statistics.mean(values) for values in scores]
    return means, [100 * statistics.stdev(v) if len(v) > 1 else 0.0 for v in scores]


def accuracy_of_parts(axes: Any, by_model: dict[str, list[Result]]) -> None:
    """A line for each model against the number that its parts are named by."""
    parts = list(next(iter(by_model.values()))[0]["parts"])
    numbers = [int(part.split()[0]) for part in parts]
    for name, runs in by_model.items():
        scores = [[run["parts"][part] for run in runs] for part in parts]
        axes.errorbar(numbers, *means_and_bars(scores), capsize=3, **style(name))
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set_ylim(-3, 103)
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)


def mad(results: Results, path: Path) -> None:
    """Accuracy of every model on every task of MAD."""
    tasks = [task for task in MAD if task in results]
    with figure(path, 1, 1, size=(13, 5)) as ((axes,),):
        for number, name in enumerate(name for name in MODELS if name not in ABLATIONS):
            there = [i for i, task in enumerate(tasks) if name in results[task]]
            places = [i + 0.07 * (number - 4.5) for i in there]
            scores = [[run["accuracy"] for run in results[tasks[i]][name]] for i in there]
            look = style(name) | {"linestyle": "none"}
            axes.errorbar(places, *means_and_bars(scores), capsize=3, **look)
        axes.set_xticks(range(len(tasks)), tasks)
        axes.set_ylim(-3, 103)
        axes.set_ylabel("accuracy, %")
        axes.set_title("Tasks of MAD")
        axes.grid(alpha=0.3)
        outside_legend(axes)


def long(results: Results, path: Path) -> None:
    """Accuracy against the length of the text, a column for each task."""
    tasks = [task for task in LONG if task in results]
    with figure(path, 1, len(tasks), size=(4.5 * len(tasks) + 2, 4.5)) as (grid,):
        for axes, task in zip(grid, tasks, strict=True):
            accuracy_of_parts(axes, results[task])
            axes.axvline(TASKS[task].length, color="grey", linestyle=":")
            axes.set_xlabel("tokens (dotted: in training)")
            axes.set_title(task)
        outside_legend(grid[-1])


def capacity(found: Result, path: Path) -> None:
    """Error against the number of pairs: least squares, then each number of passes, by memory."""
    learned = found["learned"]
    passes = sorted({row["passes"] for row in learned})
    memories = list(dict.fromkeys(row["memory"] for row in learned))
    rules = list(dict.fromkeys(row["rule"] for row in learned))
    with figure(path, 1 + len(passes), len(memories), size=(15, 10)) as grid:
        for axes in grid[0][1:]:
            axes.axis("off")
        limits = grid[0][0]
        for degree in sorted({row["degree"] for row in found["least_squares"]}):
            rows = [row for row in found["least_squares"] if row["degree"] == degree]
            label = f"degree {degree}, D = {rows[0]['features']}"
            lines(limits, rows, label, f"C{degree - 1}")
            limits.axvline(rows[0]["features"], color=f"C{degree - 1}", linestyle=":")
        limits.set_title("least squares (dotted: D)")
        outside_legend(limits)
        limits.get_legend().set_in_layout(False)  # there is room beside it
        for row_axes, number in zip(grid[1:], passes, strict=True):
            for axes, memory in zip(row_axes, memories, strict=True):
                for index, rule in enumerate(rules):
                    rows = [
                        row for row in learned
                        if (row["memory"], row["rule"], row["passes"]) == (memory, rule, number)
                    ]  # fmt: skip
                    lines(axes, rows, rule, f"C{index}")
                weights = next(row["weights"] for row in learned if row["memory"] == memory)
                axes.axhline(STORED, color="black", linestyle=":", linewidth=1)
                count = "1 pass" if number == 1 else f"{number} passes"
                axes.set_title(f"{memory} ({weights} numbers), {count}", fontsize=10)
            outside_legend(row_axes[-1])
        for axes in (limits, *grid[1:].flat):
            axes.set_xscale("log", base=2)
            axes.set_ylim(-0.03, 1.1)
            axes.set_xlabel("pairs")
            axes.set_ylabel("relative error of recall")
            axes.grid(alpha=0.3)


def lines(axes: Any, rows: list[dict[str, Any]], label: str, color: str) -> None:
    rows = sorted(rows, key=lambda row: row["pairs"])
    axes.errorbar(
        [row["pairs"] for row in rows], [row["error"] for row in rows],
        [row["spread"] for row in rows], label=label, color=color, marker="o", markersize=4,
        capsize=3,
    )  # fmt: skip


def learnability(found: Result, path: Path) -> None:
    """Error along the sequence: a row for each memory, a column for each family."""
    rows = found["rows"]
    families = list(dict.fromkeys(row["family"] for row in rows))
    memories = list(dict.fromkeys(row["memory"] for row in rows))
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    with figure(path, len(memories), len(families), size=(17, 11)) as grid:
        for i, memory in enumerate(memories):
            for j, family in enumerate(families):
                axes = grid[i][j]
                for index, rule in enumerate(rules):
                    (row,) = (
                        r for r in rows
                        if (r["family"], r["memory"], r["rule"]) == (family, memory, rule)
                    )  # fmt: skip
                    piece = found["length"] / len(row["curve"])
                    places = [piece * (k + 0.5) for k in range(len(row["curve"]))]
                    axes.plot(places, row["curve"], label=rule, color=f"C{index}")
                axes.set_ylim(0, 1.2)
                axes.set_title(f"{family}\n{memory} memory", fontsize=10)
                axes.set_xlabel("token")
                axes.grid(alpha=0.3)
            grid[i][0].set_ylabel("relative error of prediction")
            outside_legend(grid[i][-1])


def draw(folder: Path, results: Results, images: Path) -> list[Path]:
    """Every plot that has results; returns their paths."""
    drawn = []
    if "mqar" in results:
        recall(results["mqar"], drawn_path := images / "quality_mqar.png")
        drawn.append(drawn_path)
    for name, tasks, plot in (("mad", MAD, mad), ("long", LONG, long)):
        if any(task in results for task in tasks):
            path = images / f"quality_{name}.png"
            plot(results, path)
            drawn.append(path)
    for name, plot in (("capacity", capacity), ("learnability", learnability)):
        if (folder / f"{name}.json").exists():
            path = images / f"quality_{name}.png"
            plot(read(folder / f"{name}.json"), path)
            drawn.append(path)
    return drawn
