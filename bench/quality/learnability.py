"""Which functions a memory learns while it reads (the paper's learnability experiments).

A sequence of pairs (x_t, y_t) comes from one of five families; the memory predicts each y_t before
it is written. The paper trains larger MLPs with optimisers of deep learning; here it is the memory
operator itself, with constant gates and the best of a grid of step sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .capacity import spread
from .online import DIM, MEMORIES, RULES, STEP_SIZES, Memory, Rule, best_step, learn, relative_error

RANK = 2
HIDDEN = 32
ATTENTION_WINDOW = 16
WARM = 4  # the error is that of the last 1/WARM of the sequence
CURVE_POINTS = 16

Family = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Sizes:
    """Of the experiment."""

    length: int = 512
    seeds: int = 8


QUICK = Sizes(length=32, seeds=1)


def random_map(
    x: Tensor, source: torch.Generator, rows: int
) -> Tensor:  # [B, T, D] -> [B, T, rows]
    """A matrix for each sequence, drawn so that the size of x is kept."""
    weight = torch.randn(x.shape[0], x.shape[-1], rows, generator=source)
    return x @ weight / x.shape[-1] ** 0.5


def mlp(x: Tensor, source: torch.Generator) -> Tensor:
    return random_map(F.gelu(random_map(x, source, HIDDEN)), source, DIM)


def attention(x: Tensor, source: torch.Generator, window: int) -> Tensor:
    """One head of causal softmax attention over the last `window` tokens."""
    q, k, v = (random_map(x, source, DIM) for _ in range(3))
    place = torch.arange(x.shape[1])
    distance = place[:, None] - place
    mask = (distance >= 0) & (distance < window)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def low_rank_family(x: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, random_map(random_map(x, source, RANK), source, DIM)


def mlp_family(x: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, mlp(x, source)


def attention_family(x: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """The answer depends on all that came before, of which the memory sees only x_t."""
    return x, mlp(attention(x, source, x.shape[1]), source)


def attention_input_family(x: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """The memory sees the attention's output."""
    x = attention(x, source, x.shape[1])
    return x, mlp(x, source)


def window_family(x: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, mlp(attention(x, source, ATTENTION_WINDOW), source)


FAMILIES: dict[str, Family] = {
    "low rank": low_rank_family,
    "MLP": mlp_family,
    "attention + MLP": attention_family,
    "attention as input": attention_input_family,
    "sliding window + MLP": window_family,
}


def draw(name: str, sizes: Sizes) -> tuple[Tensor, Tensor]:  # each [seeds, length, DIM]
    """Inputs and answers, both with a mean square norm of 1 over a sequence."""
    source = torch.Generator().manual_seed(list(FAMILIES).index(name))
    x = torch.randn(sizes.seeds, sizes.length, DIM, generator=source)
    x, y = FAMILIES[name](x, source)
    return unit(x), unit(y)


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1).mean(dim=1)[:, None, None].sqrt()


def predict(memory: Memory, rule: Rule, x: Tensor, y: Tensor) -> Tensor:  # [B, T-1, S, DIM]
    """The prediction of y_{t+1} from x_{t+1}, by the memory that has seen the pairs up to t."""
    schedule = torch.ones(x.shape[1] - 1)
    return learn(memory, rule, x[:, :-1], y[:, :-1], x[:, 1:], schedule)


def run(sizes: Sizes) -> dict[str, Any]:
    """Relative error of the predictions, 1 for a memory that knows nothing, at the best step."""
    rows = []
    for family in FAMILIES:
        x, y = draw(family, sizes)
        late = sizes.length // WARM
        for memory in MEMORIES:
            for rule in RULES:
                o = predict(MEMORIES[memory], RULES[rule], x, y)
                errors = relative_error(o[:, -late:], y[:, -late:])
                best = best_step(errors)
                pieces = zip(o.chunk(CURVE_POINTS, 1), y[:, 1:].chunk(CURVE_POINTS, 1), strict=True)
                curve = [float(relative_error(a, b)[:, best].mean()) for a, b in pieces]
                rows.append({
                    "family": family, "memory": memory, "rule": rule,
                    "error": float(errors[:, best].mean()), "spread": spread(errors[:, best]),
                    "step_size": STEP_SIZES[best], "curve": [round(point, 4) for point in curve],
                })  # fmt: skip
        print(f"learnability  {family}", flush=True)
    return {"dim": DIM, "length": sizes.length, "seeds": sizes.seeds, "rows": rows}
