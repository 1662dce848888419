"""What the algorithms of the Omega rule share: options, layouts, the window tail, states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._checks import check_choice, check_count, compute_dtype, fail
from ._memory import ACTIVATIONS, OBJECTIVES, Matrices
from .newton_schulz import SCALES, orthogonalise, schedule_rows
from .poly_features import check_degree, check_scales, poly_features

NS_EPS = 1e-7


@dataclass(frozen=True)
class Options:
    """The rule's options after checking."""

    objective: str
    activation: str
    residual: bool
    degree: int | None
    feature_scales: Tensor | None  # [degree+1]
    ns_rows: list[tuple[float, float, float]]  # empty: plain descent
    ns_scale: str
    ns_every: int
    chunk_size: int

    def lift(self, x: Tensor) -> Tensor:  # [..., K] -> [..., D]
        return x if self.degree is None else poly_features(x, self.degree, self.feature_scales)

    def raw(self, x: Tensor) -> Tensor | None:
        return x if self.residual else None

    def orthogonalise(self, s: Tensor) -> Tensor:
        return orthogonalise(s, self.ns_rows, self.ns_scale, NS_EPS)

    def writes(self, position: int) -> bool:
        """Whether the token at this position of its sequence writes to the memory (NS stride)."""
        return not self.ns_rows or position % self.ns_every == self.ns_every - 1


@dataclass(frozen=True)
class Tokens:
    """N sequences of equal length T, heads before time; k and v begin with the window's tail."""

    q: Tensor  # [N, H, T, K]
    k: Tensor  # [N, H, W-1+T, K]
    v: Tensor  # [N, H, W-1+T, V]
    gamma: Tensor  # [N, H, T, W] oldest first: gamma[t, s] is k[t+s]'s gate, 0 before the start
    eta: Tensor  # [N, H, T]
    log_alpha: Tensor  # [N, H, T]
    log_theta: Tensor | None  # [N, H, T]
    positions: list[int]  # [N] of the first token

    @property
    def window(self) -> int:
        return self.gamma.shape[-1]

    @property
    def length(self) -> int:
        return self.q.shape[2]

    def select(self, sequences: slice, start: int, end: int) -> Tokens:
        """Some sequences, and of each the tokens from start to end with the window before them."""
        span = (sequences, slice(None), slice(start, end))
        rows = (sequences, slice(None), slice(start, end + self.window - 1))
        return Tokens(
            self.q[span],
            self.k[rows],
            self.v[rows],
            self.gamma[span],
            self.eta[span],
            self.log_alpha[span],
            None if self.log_theta is None else self.log_theta[span],
            [first + start for first in self.positions[sequences]],
        )


@dataclass(frozen=True)
class Memory:
    """M_t, S_t and M_ref of N sequences."""

    weights: Matrices
    momentum: Matrices | None
    reference: Matrices

    def select(self, sequences: slice) -> Memory:
        def cut(matrices: Matrices) -> Matrices:
            return tuple(matrix[sequences] for matrix in matrices)

        momentum = None if self.momentum is None else cut(self.momentum)
        return Memory(cut(self.weights), momentum, cut(self.reference))


def concatenate(memories: Sequence[Memory]) -> Memory:
    def joined(parts: Sequence[Matrices]) -> Matrices:
        return tuple(torch.cat(matrices) for matrices in zip(*parts, strict=True))

    momenta = [memory.momentum for memory in memories if memory.momentum is not None]
    return Memory(
        joined([memory.weights for memory in memories]),
        joined(momenta) if momenta else None,
        joined([memory.reference for memory in memories]),
    )


def make_options(
    op: str,
    objective: str,
    activation: str,
    residual: bool,
    degree: int | None,
    feature_scales: Tensor | None,
    ns_steps: int,
    ns_schedule: str | Tensor,
    ns_scale: str,
    ns_every: int,
    chunk_size: int,
) -> Options:
    check_choice(op, "objective", objective, OBJECTIVES)
    check_choice(op, "activation", activation, ACTIVATIONS)
    if degree is not None:
        check_degree(op, degree)
        check_scales(op, "feature_scales", feature_scales, degree)
    elif feature_scales is not None:
        fail(op, "feature_scales", "None where degree is None", list(feature_scales.shape))
    check_count(op, "ns_steps", ns_steps, 0)
    check_choice(op, "ns_scale", ns_scale, SCALES)
    check_count(op, "ns_every", ns_every, 1)
    check_count(op, "chunk_size", chunk_size, 1)
    ns_rows = schedule_rows(op, "ns_schedule", ns_schedule, ns_steps)
    return Options(
        objective,
        activation,
        residual,
        degree,
        feature_scales,
        ns_rows,
        ns_scale,
        ns_every,
        chunk_size,
    )


def prepare_tokens(
    q: Tensor,  # [N, T, H, K]
    k: Tensor,  # [N, T, H, K]
    v: Tensor,  # [N, T, H, V]
    gamma: Tensor,  # [N, T, H, W]
    eta: Tensor,  # [N, T, H]
    log_alpha: Tensor | None,
    log_theta: Tensor | None,
    k_tail: Tensor,  # [N, W-1, H, K]
    v_tail: Tensor,  # [N, W-1, H, V]
    position: Tensor,  # [N]
) -> Tokens:
    """Heads before time, compute dtype, the tail put first, gates masked by position."""
    dtype = compute_dtype(q)

    def heads_first(x: Tensor) -> Tensor:
        return x.to(dtype).transpose(1, 2)

    window, length = gamma.shape[-1], q.shape[1]
    # Slot s of the tail holds position p - (W-1) + s; what lies before the start does not exist.
    slots = torch.arange(window - 1, device=q.device)
    exists = position[:, None] - (window - 1) + slots >= 0  # [N, W-1]

    def with_tail(tail: Tensor, x: Tensor) -> Tensor:  # [N, H, W-1+T, width]
        kept = torch.where(exists[:, :, None, None], tail.to(dtype), torch.zeros((), dtype=dtype))
        return torch.cat([kept, x.to(dtype)], dim=1).transpose(1, 2)

    steps = torch.arange(length, device=q.device)
    offsets = torch.arange(window, device=q.device)
    seen = position[:, None, None] + steps[:, None] - offsets >= 0  # [N, T, W]
    gates = torch.where(seen[:, None], heads_first(gamma), torch.zeros((), dtype=dtype))
    return Tokens(
        heads_first(q),
        with_tail(k_tail, k),
        with_tail(v_tail, v),
        gates.flip(-1),
        heads_first(eta),
        torch.zeros_like(heads_first(eta)) if log_alpha is None else heads_first(log_alpha),
        None if log_theta is None else heads_first(log_theta),
        position.tolist(),
    )
