"""What omega_rule and omega_rule_update share: types of arguments, shapes of memories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atlas_ext.ops.poly_features import poly_feature_dim
from atlas_ext.state import OmegaState


def degree_argument(op: str, degree: int | None) -> int:
    """The operators write 0 for the identity."""
    if degree is not None and degree < 1:
        raise ValueError(f"{op}: degree: wanted None or 1 to 4, got {degree}")
    return degree or 0


def schedule_arguments(schedule: str | Tensor) -> tuple[Tensor | None, str]:
    """ns_table and ns_schedule of the operators."""
    if isinstance(schedule, Tensor):
        return schedule.detach(), "table"
    return None, schedule


def check_matrices_type(op: str, name: str, matrices: Any) -> None:
    if not isinstance(matrices, Sequence) or not all(isinstance(m, Tensor) for m in matrices):
        raise ValueError(f"{op}: {name}: wanted a tuple of tensors, got {type(matrices).__name__}")


def check_state_type(op: str, name: str, state: Any) -> None:
    if not isinstance(state, OmegaState):
        raise ValueError(f"{op}: {name}: wanted an OmegaState, got {type(state).__name__}")
    for field in ("weights", "chunk_weights", "momentum"):
        if field != "momentum" or state.momentum is not None:
            matrices = getattr(state, field)
            check_matrices_type(op, f"{name}.{field}", matrices)
            if len(matrices) != len(state.weights):
                wanted = f"as many matrices as weights, {len(state.weights)}"
                raise ValueError(f"{op}: {name}.{field}: wanted {wanted}, got {len(matrices)}")


def requires_grad(inputs: Sequence[Any]) -> bool:
    flat = [y for x in inputs for y in (x if isinstance(x, list) else (x,))]
    return any(isinstance(x, Tensor) and x.requires_grad for x in flat)


def features_of(key_dim: int, degree: int) -> int:
    """D, with degree 0 for the identity."""
    return key_dim if degree == 0 else poly_feature_dim(key_dim, degree)


def memory_shapes(
    weights: Sequence[Any],  # shapes [N, H, out, in]
    value: Any,
    features: Any,
) -> list[tuple[Any, Any]]:
    """(out, in) of every matrix: linear [V, D], or [F, D] of W1 and W3 and [V, F] of W2."""
    if len(weights) == 1:
        return [(value, features)]
    hidden = weights[0][-2]
    return [*[(hidden, features)] * (len(weights) - 1), (value, hidden)]


def sums_dtype(q: Tensor) -> torch.dtype:
    """Of sums and states."""
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def sequence_count(q: Tensor, cu_seqlens: Tensor | None) -> int:
    """N."""
    return q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def matrices_for_each(
    weights: Sequence[Tensor], q: Tensor, cu_seqlens: Tensor | None
) -> list[Tensor]:
    """M_0 of every sequence, [N, H, out, in]; one for all is expanded, without a copy."""
    sequences = q.shape[0] if q.dim() > 0 else 0
    if cu_seqlens is not None:
        sequences = cu_seqlens.numel() - 1
    return [w.unsqueeze(0).expand(sequences, -1, -1, -1) if w.dim() == 3 else w for w in weights]


def chunk_count(q: Tensor, position: Tensor | None, cu_seqlens: Tensor | None, chunk: int) -> int:
    """An upper bound of the number of chunks that follows from shapes alone."""
    tokens, extra = q.shape[1], 0 if position is None else 1
    # No int(): it would turn a symbolic size into a constant, one compilation per length.
    if cu_seqlens is None:
        count: int = q.shape[0] * ((tokens + chunk - 1) // chunk + extra)
    else:
        count = tokens // chunk + sequence_count(q, cu_seqlens) * (1 + extra)
    return count
