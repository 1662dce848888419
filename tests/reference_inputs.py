"""Small float64 inputs for the tests of the reference."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MEMORIES = ("linear", "mlp", "gated_mlp")


class Inputs(NamedTuple):
    """Arguments of the rule, in its order; index with `tokens` for a span of time."""

    q: Tensor  # [B, T, H, K]
    k: Tensor  # [B, T, H, K]
    v: Tensor  # [B, T, H, V]
    gamma: Tensor  # [B, T, H, W]
    eta: Tensor  # [B, T, H]
    log_alpha: Tensor | None  # [B, T, H]
    log_theta: Tensor | None  # [B, T, H]

    def tokens(self, start: int | None, end: int | None) -> Inputs:
        return Inputs(*(None if x is None else x[:, start:end] for x in self))

    def sequence(self, n: int) -> Inputs:
        return Inputs(*(None if x is None else x[n : n + 1] for x in self))


def make_inputs(
    batch: int = 2,
    length: int = 11,
    heads: int = 2,
    key_dim: int = 4,
    value_dim: int = 4,
    window: int = 3,
    momentum: bool = True,
    seed: int = 0,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(batch, length, heads, *sizes, dtype=torch.float64, generator=generator)

    return Inputs(
        q=0.5 * normal(key_dim),
        k=0.5 * normal(key_dim),
        v=normal(value_dim),
        gamma=torch.sigmoid(normal(window)),
        eta=0.3 * torch.sigmoid(normal()),
        log_alpha=-0.2 * torch.sigmoid(normal()),
        log_theta=-0.5 * torch.sigmoid(normal()) if momentum else None,
    )


def make_weights(
    memory: str,
    heads: int = 2,
    key_dim: int = 4,
    value_dim: int = 4,
    hidden: int = 5,
    degree: int | None = None,
    seed: int = 1,
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    features = key_dim if degree is None else math.comb(key_dim + degree, degree)

    def normal(out: int, width: int) -> Tensor:
        return 0.3 * torch.randn(heads, out, width, dtype=torch.float64, generator=generator)

    if memory == "linear":
        return (normal(value_dim, features),)
    first = tuple(normal(hidden, features) for _ in range(1 if memory == "mlp" else 2))
    return (*first, normal(value_dim, hidden))


def state_tensors(state: object) -> list[Tensor]:
    """Every tensor of an OmegaState or ExpOmegaState."""
    found: list[Tensor] = []
    fields = state if isinstance(state, tuple | list) else vars(state).values()
    for field in fields:
        if isinstance(field, Tensor):
            found.append(field)
        elif isinstance(field, tuple):
            found.extend(field)
    return found


def assert_same(actual: object, expected: object, tolerance: float = 1e-11) -> None:
    """States or tensors agree to round-off of float64."""
    if isinstance(actual, Tensor):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)
        return
    left, right = state_tensors(actual), state_tensors(expected)
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert_same(one, other, tolerance)
