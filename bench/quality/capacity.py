"""How many random pairs a memory of a given size holds (paper, propositions 1 and 2).

Three questions: what the best weights of a memory that is linear in its features can do (least
squares; they fit as many pairs as there are features), what the rule finds in many passes over the
pairs, and what it keeps of a single pass, which is all that a sequence model gets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import atlas_ext

from .online import (
    DIM,
    MEMORIES,
    RULES,
    STEP_SIZES,
    Memory,
    best_step,
    learn,
    relative_error,
    weight_count,
)

DEGREES = (1, 2, 3)
STORED = 0.1  # pairs count as stored when the relative error is below this


@dataclass(frozen=True)
class Sizes:
    """Of the experiment."""

    pairs: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256)
    least_squares_pairs: tuple[int, ...] = (4, 8, 9, 16, 32, 45, 64, 128, 165, 256)
    passes: tuple[int, ...] = (1, 32)
    seeds: int = 8


QUICK = Sizes(pairs=(4, 8), least_squares_pairs=(8, 10, 45, 46, 165, 166), passes=(1, 2), seeds=1)


def draw_pairs(seeds: int, pairs: int) -> tuple[Tensor, Tensor]:  # each [seeds, pairs, DIM]
    """Keys on the unit sphere, and values likewise: what the layers' normalised keys are."""
    source = torch.Generator().manual_seed(pairs)
    k, v = torch.randn(2, seeds, pairs, DIM, generator=source)
    return F.normalize(k, dim=-1), F.normalize(v, dim=-1)


def least_squares_error(degree: int, pairs: int, seeds: int) -> Tensor:  # [seeds]
    """Relative error of the best linear map of the features."""
    k, v = (x.double() for x in draw_pairs(seeds, pairs))
    x = atlas_ext.poly_features(k, degree=degree)
    # unregularised, of minimal norm; the driver that is right without full rank
    weights = torch.linalg.lstsq(x, v, driver="gelsd").solution
    return relative_error((x @ weights)[:, :, None], v)[:, 0]


def rule_errors(
    memory: Memory, rule_name: str, pairs: int, passes: int, seeds: int
) -> Tensor:  # [seeds, S]
    """Relative error of the recall of all pairs after some passes over them.

    In one pass the step size is constant, as the layer cannot know what will come; in many it
    falls linearly to 0, so that a rule of constant speed (Muon) can settle.
    """
    k, v = draw_pairs(seeds, pairs)
    steps = passes * pairs
    falling = torch.linspace(1.0, 0.0, steps + 1)[:steps]
    schedule = torch.ones(steps) if passes == 1 else falling
    schedule = F.pad(schedule, (0, pairs))  # no writes while all keys are read once more
    k, v = k.repeat(1, passes + 1, 1), v.repeat(1, passes + 1, 1)
    o = learn(memory, RULES[rule_name], k, v, k, schedule)
    return relative_error(o[:, steps:], v[:, steps:])


def spread(x: Tensor) -> float:
    return float(x.std()) if len(x) > 1 else 0.0


def run(sizes: Sizes) -> dict[str, Any]:
    """All errors: mean and standard deviation over the seeds, at the best step size."""
    fitted = []
    for degree in DEGREES:
        features = atlas_ext.poly_feature_dim(DIM, degree)
        for pairs in sizes.least_squares_pairs:
            error = least_squares_error(degree, pairs, sizes.seeds)
            row = {"degree": degree, "features": features, "pairs": pairs}
            fitted.append(row | {"error": float(error.mean()), "spread": spread(error)})
    learned = []
    for name, memory in MEMORIES.items():
        for rule in RULES:
            for passes in sizes.passes:
                for pairs in sizes.pairs:
                    errors = rule_errors(memory, rule, pairs, passes, sizes.seeds)
                    best = best_step(errors)
                    learned.append({
                        "memory": name, "weights": weight_count(memory), "rule": rule,
                        "passes": passes, "pairs": pairs, "error": float(errors[:, best].mean()),
                        "spread": spread(errors[:, best]), "step_size": STEP_SIZES[best],
                    })  # fmt: skip
            print(f"capacity  {name}, {rule}", flush=True)
    return {"dim": DIM, "seeds": sizes.seeds, "least_squares": fitted, "learned": learned}


def stored_pairs(rows: list[dict[str, Any]]) -> int:
    """The largest number of pairs up to which every error is below STORED; 0 if none."""
    stored = 0
    for row in sorted(rows, key=lambda row: row["pairs"]):
        if row["error"] >= STORED:
            break
        stored = row["pairs"]
    return stored
