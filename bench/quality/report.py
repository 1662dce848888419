"""Tables of the results, and the parts of docs/results.md that are made from them."""

from __future__ import annotations

import re
import statistics
from pathlib import Path
from typing import Any

from . import claims, plots, rates
from .capacity import STORED, stored_pairs
from .models import MODELS
from .tables import mark, markdown, mean_spread, with_spread
from .tasks import LONG, MAD
from .training import Result, Results, read

DOCS = Path(__file__).parents[2] / "docs"


def load(folder: Path) -> Results:
    """All finished runs, in the order of the registry of models."""
    found: Results = {}
    for path in sorted(folder.glob("*/*.json")):
        result = read(path)
        if {"task", "model", "seed"} <= result.keys() and result["model"] in MODELS:
            found.setdefault(result["task"], {}).setdefault(result["model"], []).append(result)
    return {
        task: {name: by_model[name] for name in MODELS if name in by_model}
        for task, by_model in found.items()
    }


def task_table(by_model: dict[str, list[Result]]) -> str:
    """Accuracy of each model on one task, in all and on its parts."""
    parts = list(next(iter(by_model.values()))[0]["parts"])
    header = ["model", "parameters", "state, KiB", "accuracy, %", *parts, "steps", "CPU s", "seeds"]
    rows = []
    for name, results in by_model.items():
        first = results[0]
        rows.append([
            name, f"{first['parameters']:,}", f"{first['state_bytes'] / 1024:.1f}",
            mean_spread([r["accuracy"] for r in results]) + mark(results),
            *(mean_spread([r["parts"][part] for r in results]) for part in parts),
            f"{statistics.mean(r['steps'] for r in results):.0f}",
            f"{statistics.mean(r['seconds'] for r in results):.0f}", str(len(results)),
        ])  # fmt: skip
    return markdown(header, rows)


def mad_table(results: Results) -> str:
    """A row for each model, a column for each task that was run, their mean, and the seeds."""
    tasks = [task for task in MAD if task in results]
    rows = []
    for name in (name for name in MODELS if all(name in results[task] for task in tasks)):
        runs = [results[task][name] for task in tasks]
        scores = [[run["accuracy"] for run in one] for one in runs]
        mean = f"{100 * statistics.mean(map(statistics.mean, scores)):.1f}"
        cells = [mean_spread(s) + mark(one) for s, one in zip(scores, runs, strict=True)]
        seeds = sorted({len(one) for one in runs})
        rows.append([name, *cells, mean, ", ".join(map(str, seeds))])
    return markdown(["model", *tasks, "mean", "seeds"], rows)


def long_tables(results: Results) -> str:
    """Accuracy at each length, a table for each task that was run."""
    there = [task for task in LONG if task in results]
    return "\n\n".join(f"`{task}`:\n\n{task_table(results[task])}" for task in there)


def rates_table(searched: dict[str, dict[str, dict[str, Result]]]) -> str:
    """Accuracy at each rate that was tried, by task and model; that of the chosen one is bold."""
    rows = []
    tried = sorted(
        {rate for task in searched.values() for s in task.values() for rate in s}, key=float
    )
    for task, by_model in searched.items():
        for name in (name for name in MODELS if name in by_model):
            cells = {
                rate: mean_spread([one["accuracy"]]) + mark([one])
                for rate, one in by_model[name].items()
            }
            best = f"{rates.best(by_model[name]):g}"
            cells[best] = f"**{cells[best]}**"
            rows.append([task, name, *(cells.get(rate, "–") for rate in tried)])
    return markdown(["task", "model", *tried], rows)


def capacity_tables(found: Result) -> str:
    """Pairs that each memory stores, and the least-squares limits."""
    fitted = found["least_squares"]
    limits = []
    for degree in sorted({row["degree"] for row in fitted}):
        rows = [row for row in fitted if row["degree"] == degree]
        features = rows[0]["features"]
        within = max(row["error"] for row in rows if row["pairs"] <= features)
        beyond = min((row for row in rows if row["pairs"] > features), key=lambda r: r["pairs"])
        limits.append([
            str(degree), str(features), f"{within:.0e}", f"{beyond['error']:.2f}",
            str(beyond["pairs"]),
        ])  # fmt: skip
    first = markdown(
        ["degree", "features D", "largest error, up to D pairs", "error beyond D", "at pairs"],
        limits,
    )
    learned = found["learned"]
    passes = sorted({row["passes"] for row in learned})
    memories = list(dict.fromkeys((row["memory"], row["weights"]) for row in learned))
    rules = list(dict.fromkeys(row["rule"] for row in learned))
    counts = sorted({row["pairs"] for row in learned})
    rows = []
    for memory, weights in memories:
        for rule in rules:
            cells = []
            for number in passes:
                mine = [
                    row for row in learned
                    if (row["memory"], row["rule"], row["passes"]) == (memory, rule, number)
                ]  # fmt: skip
                cells.append(str(stored_pairs(mine)))
                if number == 1:
                    cells.append(with_spread(next(r for r in mine if r["pairs"] == 8)))
            rows.append([memory, str(weights), rule, *cells])
    header = ["memory", "numbers", "rule"]
    for number in passes:
        name = "1 pass" if number == 1 else f"{number} passes"
        header.append(f"stored, {name}")
        if number == 1:
            header.append("error at 8 pairs, 1 pass")
    note = (
        f"Stored: the largest of {', '.join(map(str, counts))} up to which the error is below "
        f"{STORED}; 0: none of them."
    )
    return f"{first}\n\n{markdown(header, rows)}\n\n{note}"


def learnability_table(found: Result) -> str:
    """Late error of each memory and rule on each family."""
    rows = found["rows"]
    families = list(dict.fromkeys(row["family"] for row in rows))
    pairs = list(dict.fromkeys((row["memory"], row["rule"]) for row in rows))
    cells = {(row["family"], row["memory"], row["rule"]): with_spread(row) for row in rows}
    lines = [[*pair, *(cells[(family, *pair)] for family in families)] for pair in pairs]
    return markdown(["memory", "rule", *families], lines)


def environment_line(results: list[Result]) -> str:
    """Machine and versions of the runs; all of them where they differ."""
    seen: dict[str, list[str]] = {}
    for result in results:
        for name, value in result["environment"].items():
            values = seen.setdefault(name, [])
            if str(value) not in values:
                values.append(str(value))
    return "; ".join(f"{name} {', '.join(values)}" for name, values in seen.items()) + "."


def sections(folder: Path) -> dict[str, str]:
    """The generated parts of the page by the name of their markers, those that have results."""
    results = load(folder)
    single = {
        name: read(folder / f"{name}.json")
        for name in ("capacity", "learnability")
        if (folder / f"{name}.json").exists()
    }
    runs: list[Any] = [r for by_model in results.values() for rs in by_model.values() for r in rs]
    streams = [read(path) for path in sorted((folder / "streams").glob("*.json"))]
    made = {"claims": claims.table(results, single, streams)}
    if runs or single:
        made["environment"] = environment_line([*runs, *single.values()])
    if "mqar" in results:
        made["mqar"] = task_table(results["mqar"])
    if any(task in results for task in MAD):
        made["mad"] = mad_table(results)
    if any(task in results for task in LONG):
        made["long"] = long_tables(results)
    searched = rates.load(folder)["tasks"]
    if searched:
        made["rates"] = rates_table(searched)
    if "capacity" in single:
        made["capacity"] = capacity_tables(single["capacity"])
    if "learnability" in single:
        made["learnability"] = learnability_table(single["learnability"])
    return made


def fill(page: str, parts: dict[str, str]) -> str:
    """The page with what stands between `<!-- begin NAME -->` and `<!-- end NAME -->` replaced.

    Raises:
        ValueError: a part has no place in the page.
    """
    for name, text in parts.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        page, count = pattern.subn(lambda m, text=text: f"{m[1]}{text}\n{m[2]}", page)
        if count != 1:
            raise ValueError(f"report: page: wanted one place for {name!r}, got {count}")
    return page


def write(folder: Path, docs: Path = DOCS) -> list[Path]:
    """Plots, and docs/results.md with its generated parts made anew; returns what was written."""
    parts = sections(folder)
    page = docs / "results.md"
    page.write_text(fill(page.read_text(), parts))
    return [page, *plots.draw(folder, load(folder), docs / "images")]
