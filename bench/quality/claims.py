"""The paper's claims beside what was measured, with a verdict that knows the noise."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

from .tables import mark, markdown, mean_spread
from .tasks import LONG, MAD
from .training import Result, Results

NOISE = 3.0  # a difference counts from so many standard errors
LEAST = 0.01  # and from so much, in accuracy
LEARNED = 0.5  # a task counts as learned from this accuracy
FALL = 0.1  # in accuracy, that a model may lose on longer texts and still be said to keep it
UNTESTABLE = "not testable here"


class Claim(NamedTuple):
    """A row of the table."""

    claim: str
    measured: str
    verdict: str


def verdict(better: list[float], worse: list[float], least: float = LEAST) -> str:
    """Whether the first are above the second by more than noise: Welch's standard error."""
    difference = statistics.mean(better) - statistics.mean(worse)
    if min(len(better), len(worse)) < 2:
        return "no spread: one seed"
    error = math.sqrt(sum(statistics.variance(x) / len(x) for x in (better, worse)))
    if abs(difference) <= max(least, NOISE * error):
        return "no difference beyond noise"
    return "agrees" if difference > 0 else "disagrees"


def compare(
    results: Results, tasks: Sequence[str], better: str, worse: str, part: str | None = None
) -> tuple[str, str] | None:
    """Measurement and verdict of `better` beats `worse` in the mean over tasks, or on that part of
    each; None: not run."""
    if not tasks or any(not {better, worse} <= results.get(task, {}).keys() for task in tasks):
        return None
    means, shown = [], []
    for name in (better, worse):
        runs = [results[task][name] for task in tasks]
        seeds = zip(*runs, strict=False)  # as many as every task has
        means.append([statistics.mean(score(run, part) for run in seed) for seed in seeds])
        shown.append(f"{name} {mean_spread(means[-1], ' %')}{mark(chain(*runs))}")
    where = ", ".join(tasks) if len(tasks) < 3 else f"mean of {len(tasks)} tasks"
    where += f", {part}" if part else ""
    return f"{where}: {', '.join(shown)}", verdict(*means)


def score(run: Result, part: str | None) -> float:
    """Accuracy of a run, in all or on a part."""
    accuracy: float = run["parts"][part] if part else run["accuracy"]
    return accuracy


def keeps(results: Results, task: str, name: str) -> tuple[str, str] | None:
    """Whether a model does on the last of a task's parts about what it does on the first."""
    runs = results.get(task, {}).get(name)
    if runs is None:
        return None
    first, *_, last = runs[0]["parts"]
    near, far = ([score(run, part) for run in runs] for part in (first, last))
    text = (
        f"{task}: {name} {mean_spread(near, ' %')} at {first}, {mean_spread(far, ' %')} at {last}"
    )
    if statistics.mean(near) < LEARNED:
        return text + mark(runs), "not learned"
    fallen = statistics.mean(near) - statistics.mean(far)
    return text + mark(runs), "agrees" if fallen <= FALL else "disagrees"


def count_better(
    found: Result | None, key: str, better: dict[str, str], worse: dict[str, str], where: str
) -> tuple[str, str] | None:
    """In how many settings of a bare-memory experiment `better` has the lower error.

    Settings are the rows of the two sides that agree in all else; one counts from a difference of
    NOISE standard errors. A side must win more than twice as many as the other; where it does not
    win most of all settings, the verdict holds in part.
    """
    if found is None:
        return None
    varied = set(better)
    fixed = [
        name for name in found[key][0]
        if name not in {"error", "spread", "step_size", "curve", "weights", *varied}
    ]  # fmt: skip

    def side(wanted: dict[str, str]) -> dict[tuple[Any, ...], dict[str, Any]]:
        rows = [r for r in found[key] if all(r[name] == wanted[name] for name in wanted)]
        return {tuple(row[name] for name in fixed): row for row in rows}

    one, two = side(better), side(worse)
    wins = losses = 0
    for setting in one.keys() & two.keys():
        a, b = one[setting], two[setting]
        noise = NOISE * math.hypot(a["spread"], b["spread"]) / math.sqrt(found["seeds"])
        wins += b["error"] - a["error"] > noise
        losses += a["error"] - b["error"] > noise
    total = len(one.keys() & two.keys())
    text = f"{where}: lower error in {wins}, higher in {losses} of {total} settings"
    if max(wins, losses) <= 2 * min(wins, losses):
        return text, "mixed"
    word = "agrees" if wins > losses else "disagrees"
    return text, word if max(wins, losses) > total / 2 else f"{word} in part"


def join(claim: str, *evidence: tuple[str, str] | None) -> Claim:
    """One row; each piece of evidence with its own verdict where there are several."""
    there = [piece for piece in evidence if piece is not None]
    if not there:
        return Claim(claim, "–", "not run")
    return Claim(
        claim, "<br>".join(text for text, _ in there), "<br>".join(word for _, word in there)
    )


def stream_claim(streams: list[Result]) -> Claim:
    """Not a verdict on the claim itself: the question put here is an easier one."""
    claim = "More than 80 % at 10M tokens of BABILong"
    by_memory: dict[str, list[float]] = {}
    for run in streams:
        last = run["points"][-1]
        by_memory.setdefault(run["memory"], []).append(last["right"] / last["facts"])
    if not streams:
        return Claim(claim, "–", "not run")
    length = streams[0]["points"][-1]["tokens"]
    found = "<br>".join(f"{name}: {mean_spread(x, ' %')}" for name, x in by_memory.items())
    return Claim(
        claim,
        f"marked facts known after {length:,} tokens ([streams](results_streams.md))<br>{found}",
        f"{UNTESTABLE}; an easier question agrees or not by how the gates were trained",
    )


def rows(results: Results, single: dict[str, Result], streams: list[Result]) -> list[Claim]:
    capacity, learnability = single.get("capacity"), single.get("learnability")

    def bare(
        better: dict[str, str], worse: dict[str, str]
    ) -> tuple[tuple[str, str] | None, tuple[str, str] | None]:
        return (
            count_better(capacity, "learned", better, worse, "capacity"),
            count_better(learnability, "rows", better, worse, "learnability"),
        )

    needles = [task for task in LONG if task.startswith("needle")]
    mad = [task for task in MAD if "atlas" in results.get(task, {})]
    others = ("omeganet", "titans", "delta", "linear_attention", "transformer", "deep_transformer")
    return [
        join(
            "A window of several tokens in the inner loss helps (760M ablation: accuracy 49.26 "
            "without, 52.77 with)",
            compare(results, ["mqar"], "atlas", "atlas-window-1"),
            *bare({"rule": "omega"}, {"rule": "delta"}),
        ),
        join(
            "Polynomial features help (50.57 without)",
            compare(results, ["mqar"], "atlas", "atlas-no-polynomial"),
            *bare({"memory": "polynomial"}, {"memory": "linear"}),
        ),
        join(
            "A deep memory helps (49.74 with a linear one)",
            compare(results, ["mqar"], "atlas", "atlas-linear-memory"),
            *bare({"memory": "deep"}, {"memory": "linear"}),
        ),
        join(
            "Muon: accuracy a little better (52.56 without), perplexity not (19.65 without, 19.97 "
            "with)",
            compare(results, ["mqar"], "atlas", "atlas-no-muon"),
            *bare({"rule": "omega + momentum + Muon"}, {"rule": "omega + momentum"}),
        ),
        least_squares_claim(capacity),
        join(
            "MQAR: Atlas is best at each memory size (here: at equal parameters)",
            *(compare(results, ["mqar"], "atlas", other) for other in others),
        ),
        join(
            "MAD: Atlas above OmegaNet, Titans and the Transformer (mean 79.50, 78.98, 76.44, "
            "75.46)",
            *(compare(results, mad, "atlas", o) for o in ("omeganet", "titans", "transformer")),
        ),
        join(
            "S-NIAH: Atlas keeps what it does as texts grow from 2K to 16K tokens (passkey 100 to "
            "97.0, number 100 to 84.0)",
            *(keeps(results, task, "atlas") for task in needles),
        ),
        Claim("Language modelling at 760M and 1.3B parameters", "–", UNTESTABLE),
        stream_claim(streams),
    ]


def least_squares_claim(capacity: Result | None) -> Claim:
    claim = "A memory linear in its features holds O(K) pairs, C(K+p, p) with degree p"
    if capacity is None:
        return Claim(claim, "–", "not run")
    fitted = capacity["least_squares"]
    inside = max(row["error"] for row in fitted if row["pairs"] <= row["features"])
    outside = min(row["error"] for row in fitted if row["pairs"] > row["features"])
    sizes = sorted({row["features"] for row in fitted})
    text = (
        f"least squares, K = {capacity['dim']}, D = {', '.join(map(str, sizes))}: error at most "
        f"{inside:.0e} up to D pairs, at least {outside:.2f} beyond"
    )
    return Claim(claim, text, "agrees" if inside < 1e-6 < outside else "disagrees")


def table(results: Results, single: dict[str, Result], streams: list[Result]) -> str:
    header = ["the paper's claim", "our measurement", "verdict"]
    return markdown(header, rows(results, single, streams))
