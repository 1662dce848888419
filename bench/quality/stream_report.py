"""docs/results_streams.md and its plot, from the JSON files of `bench.quality.stream`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from .plots import figure, outside_legend
from .report import DOCS, environment_line, fill
from .tables import markdown, mean_spread
from .training import read

Results = dict[str, list[dict[str, Any]]]  # memory -> one for each seed
GOAL = 80.0  # per cent at 10 million tokens


def load(folder: Path, order: tuple[str, ...]) -> Results:
    """All finished runs, in the order of the registry of models."""
    found = [read(path) for path in sorted(folder.glob("*.json"))]
    by_memory = {name: [r for r in found if r["memory"] == name] for name in order}
    return {name: results for name, results in by_memory.items() if results}


def sentence(record: dict[str, Any]) -> str:
    """A point of a stream in one line."""
    return (
        f"{record['tokens']:>10,} tokens: {record['right']}/{record['facts']} facts, "
        f"{record['fresh_right']}/{record['fresh']} new ones; cache "
        f"{record['cache_bytes'] / 1024:.0f} KiB, process {record['resident_mib']:.0f} MiB, "
        f"{record['seconds']:.0f} s"
    )


def shares(results: list[dict[str, Any]], point: int, right: str, of: str) -> list[float]:
    """Of each seed, the share of right answers at a point."""
    records = [result["points"][point] for result in results]
    return [record[right] / record[of] for record in records]


def recall_table(results: Results) -> str:
    """Facts known, then new facts taken, at each length."""
    points = [record["tokens"] for record in next(iter(results.values()))[0]["points"]]
    rows = []
    for right, of, what in (("right", "facts", "told first"), ("fresh_right", "fresh", "new")):
        for name, found in results.items():
            cells = [mean_spread(shares(found, i, right, of)) for i in range(len(points))]
            rows.append([name, what, *cells, str(len(found))])
    return markdown(["memory", "facts, %", *(f"{n:,}" for n in points), "seeds"], rows)


def memory_table(results: Results) -> str:
    """What a run weighs at each length, the largest over the seeds, and its speed."""
    rows = []
    for name, found in results.items():
        for point, first in enumerate(found[0]["points"]):
            records = [result["points"][point] for result in found]
            seconds = statistics.mean(record["seconds"] for record in records)
            rows.append([
                name, f"{first['tokens']:,}",
                f"{max(record['cache_bytes'] for record in records) / 1024:.1f}",
                f"{max(record['resident_mib'] for record in records):.0f}",
                f"{first['tokens'] / seconds:,.0f}" if seconds else "–",
            ])  # fmt: skip
    header = ["memory", "tokens", "cache, KiB", "process, MiB", "tokens per CPU second"]
    return markdown(header, rows)


def training_table(results: Results) -> str:
    rows = [
        [
            f"{name}-{result['seed']}", f"{result['parameters']:,}", f"{result['spread']}",
            str(result["train_length"]), f"{100 * result['train_accuracy']:.1f}",
            f"{result['train_steps']:,}", f"{result['train_tokens']:,}",
            f"{result['train_seconds']:.0f}",
        ]
        for name, found in results.items()
        for result in found
    ]  # fmt: skip
    header = [
        "run", "parameters", "λ", "longest sequence", "accuracy there, %", "steps", "tokens",
        "CPU s",
    ]  # fmt: skip
    return markdown(header, rows)


def draw(results: Results, path: Path) -> None:
    """Facts known against the tokens read, and the bytes of the state."""
    with figure(path, 1, 2, size=(12, 4.5)) as ((recall, memory),):
        for number, (name, found) in enumerate(results.items()):
            tokens = [record["tokens"] for record in found[0]["points"]]
            style = {"color": f"C{number}", "marker": "os^"[number], "markersize": 5, "label": name}
            known = [shares(found, i, "right", "facts") for i in range(len(tokens))]
            means = [100 * statistics.mean(values) for values in known]
            bars = [100 * statistics.stdev(v) if len(v) > 1 else 0.0 for v in known]
            recall.errorbar(tokens, means, bars, capsize=3, **style)
            kib = [record["cache_bytes"] / 1024 for record in found[0]["points"]]
            memory.plot(tokens, kib, **style)
        values = next(iter(results.values()))[0]["task"]["values"]
        recall.axhline(100 / values, color="grey", linestyle=":", label="guessing")
        recall.axhline(GOAL, color="black", linestyle="--", linewidth=1, label=f"{GOAL:.0f} %")
        recall.axvline(2048, color="grey", linewidth=1, label="longest training sequence")
        recall.set_ylim(-3, 103)
        recall.set_ylabel("facts told in the first 2048 tokens, % known")
        memory.set_ylim(bottom=0)
        memory.set_ylabel("state, KiB")
        for axes in (recall, memory):
            axes.set_xscale("log")
            axes.set_xlabel("tokens read")
            axes.grid(alpha=0.3)
            outside_legend(axes)


def sections(results: Results) -> dict[str, str]:
    """The generated parts of the page by the name of their markers."""
    return {
        "environment": environment_line([run for found in results.values() for run in found]),
        "recall": recall_table(results),
        "memory": memory_table(results),
        "training": training_table(results),
    }


def write(folder: Path, order: tuple[str, ...], docs: Path = DOCS) -> list[Path]:
    """The plot, and the page with its generated parts made anew; returns what was written."""
    results = load(folder, order)
    page, plot = docs / "results_streams.md", docs / "images" / "streams.png"
    page.write_text(fill(page.read_text(), sections(results)))
    draw(results, plot)
    return [page, plot]
