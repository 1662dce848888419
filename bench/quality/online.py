"""Memories and rules without a model around them: gates are constant, nothing is trained outside.

Each rule has one thing more than the one before it. The step size is the best of a grid, for each
memory and rule, so that none is held back by a step made for another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

import atlas_ext
from atlas_ext.layers import OmegaMemory

DIM = 8  # K = V
THETA = 0.9
STEP_SIZES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


class Memory(NamedTuple):
    """M of [phi(k)] -> v."""

    kind: str
    degree: int | None


class Rule(NamedTuple):
    """How a memory is written, with all gates constant: gamma = 1 / W, alpha = 1."""

    window: int
    momentum: bool = False
    muon: bool = False


MEMORIES = {
    "linear": Memory("linear", None),
    "polynomial": Memory("linear", 2),
    "deep": Memory("mlp", None),
    "deep polynomial": Memory("mlp", 2),
}
RULES = {
    "delta": Rule(1),
    "omega": Rule(16),
    "omega + momentum": Rule(16, momentum=True),
    "omega + momentum + Muon": Rule(16, momentum=True, muon=True),
}


def initial_weights(memory: Memory) -> tuple[Tensor, ...]:
    """M_0 as the layer draws it, a head for each step size and all alike; 0 where it is linear."""
    torch.manual_seed(0)
    layer = OmegaMemory(DIM, 1, memory=memory.kind, degree=memory.degree)
    heads = len(STEP_SIZES)
    weights = [weight.detach().expand(heads, -1, -1) for weight in layer.memory_weights]
    return tuple(torch.zeros_like(w) if memory.kind == "linear" else w for w in weights)


def weight_count(memory: Memory) -> int:
    """Numbers in one memory."""
    return sum(weight[0].numel() for weight in initial_weights(memory))


@torch.no_grad()
def learn(
    memory: Memory,
    rule: Rule,
    k: Tensor,  # [B, T, DIM]
    v: Tensor,  # [B, T, DIM]
    q: Tensor,  # [B, T, DIM]
    schedule: Tensor,  # [T], share of the step size at each token
) -> Tensor:  # [B, T, len(STEP_SIZES), DIM]
    """What each memory reads at q_t after the write of (k_t, v_t): the exact recurrence, C = 1."""
    batch, length, _ = k.shape
    heads = len(STEP_SIZES)

    def per_head(x: Tensor) -> Tensor:  # [B, T, DIM] -> [B, T, heads, DIM]
        return x[:, :, None].expand(-1, -1, heads, -1)

    gamma = torch.full((batch, length, heads, rule.window), 1.0 / rule.window)
    eta = (schedule[:, None] * torch.tensor(STEP_SIZES)).expand(batch, -1, -1)
    log_theta = torch.full((batch, length, heads), THETA).log() if rule.momentum else None
    options: dict[str, Any] = {"ns_steps": 5 if rule.muon else 0, "degree": memory.degree}
    o, _ = atlas_ext.omega_rule(
        per_head(q), per_head(k), per_head(v), gamma, eta, log_theta=log_theta,
        weights=initial_weights(memory), chunk_size=1, **options,
    )  # fmt: skip
    return o


def relative_error(o: Tensor, v: Tensor) -> Tensor:  # [B, N, S, DIM], [B, N, DIM] -> [B, S]
    """||o - v||² over ||v||², summed over the N pairs; infinite where the memory diverged."""
    error = (o - v[:, :, None]).square().sum(dim=(1, 3)) / v.square().sum(dim=(1, 2))[:, None]
    return error.nan_to_num(nan=float("inf"))


def best_step(errors: Tensor) -> int:  # [B, S]
    """Index of the step size with the least mean error."""
    return int(errors.mean(dim=0).argmin())
