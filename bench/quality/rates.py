"""The learning rate of each model: the best of a few, on a seed that no table reports."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from . import training
from .models import FIRST
from .tasks import LONG, Task
from .training import Result

MAIN, NEEDLE, FACTS = "in-context-recall", "needle-passkey", "facts-1"
# of each run of the searches that there are
STEPS = {MAIN: 600, "mqar": 500, NEEDLE: 1500, FACTS: 1500}
START = {FACTS: 1e-3}  # at 0.004 most models only learn what a guess gets, and that is flat
LOWEST, HIGHEST = 2.5e-4, 1.6e-2
SEED = 100
FILE = "rates.json"


def load(folder: Path) -> Result:
    """What was searched so far: under "tasks", scores by task, model and rate."""
    path = folder / FILE
    return training.read(path) if path.exists() else {"tasks": {}}


def best(scores: dict[str, Result]) -> float:
    """The rate that solved the task in the fewest steps or else, all steps taken, has the lowest
    loss; a loss that is no number is the highest. Of equals the lowest rate."""

    def cost(rate: str) -> tuple[int, float, float]:
        loss = scores[rate]["loss"]
        return scores[rate]["steps"], math.inf if loss is None else loss, float(rate)

    return float(min(scores, key=cost))


def untried(scores: dict[str, Result], start: float = training.LEARNING_RATE) -> float | None:
    """The rate to try next: `start`, then half or twice the best one; None: both were tried."""
    if f"{start:g}" not in scores:
        return start
    for rate in (best(scores) / 2, 2 * best(scores)):
        if LOWEST <= rate <= HIGHEST and f"{rate:g}" not in scores:
            return rate
    return None


def searched_on(task: str) -> str:
    """The task whose search gives a task its rates."""
    if task in LONG:
        return FACTS if task.startswith("facts") else NEEDLE
    return task if task in STEPS else MAIN


def chosen(folder: Path, task: str, name: str) -> float:
    """Rate of a model on a task; Atlas's for its kin without a search of their own, and
    `training.LEARNING_RATE` where none was searched."""
    searched = load(folder)["tasks"].get(searched_on(task), {})
    scores = searched.get(name) or (searched.get(FIRST) if name.startswith(FIRST) else None)
    return best(scores) if scores else training.LEARNING_RATE


def search(task: Task, names: Iterable[str], folder: Path) -> None:
    """Trains each model at one rate after the other until the best one has its neighbours; what is
    in `folder`/rates.json is kept."""
    table = load(folder) | {"seed": SEED, "environment": training.environment()}
    by_model = table["tasks"].setdefault(task.name, {})
    for name in names:
        scores = by_model.setdefault(name, {})
        while (rate := untried(scores, START.get(task.name, training.LEARNING_RATE))) is not None:
            _, result = training.fit(task, name, SEED, rate)
            kept = ("accuracy", "loss", "steps", "seconds")
            scores[f"{rate:g}"] = {field: result[field] for field in kept}
            training.write(folder / FILE, table)
            print(f"{task.name}  {name}  rate {rate:g}  {scores[f'{rate:g}']}", flush=True)
