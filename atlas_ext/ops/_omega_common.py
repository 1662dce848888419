"""What omega_rule and omega_rule_update share: argument types, and the count of operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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


def chunk_flops(inputs: Sequence[Any], options: Sequence[Any], backward: bool) -> int:
    """Operations of all matrix products of the linear memory, from shapes (docs/performance.md)."""
    q, _, v, gamma = inputs[:4]
    momentum, l2, degree, ns_steps = inputs[6] is not None, options[0] == "l2", *options[3:5]
    ns_every, chunk = options[7], min(options[8], max(q[1], 1))
    tokens = q[0] * q[1] * q[2]
    key, value, features = q[3], v[3], features_of(q[3], degree)
    rows = (chunk + gamma[3] - 1) / chunk  # window rows a token of the chunk
    state = features * value  # one multiplication per weight
    errors = rows * state if l2 else 0
    reads = (2 if momentum and ns_steps == 0 else 1) * state
    if ns_steps > 0:
        short, long = min(features, value), max(features, value)
        orthogonalise = ns_steps * (2 * short**2 * long + short**3) / ns_every
        writes = gamma[3] * state + orthogonalise
        total = errors + reads + writes
        # The backward makes the chunk's states anew before it differentiates each product twice.
        return int(2 * tokens * (3 * total + orthogonalise if backward else total))
    writes = (2 if momentum else 1) * rows * state
    inside = rows * chunk * (key + value)
    recomputed = errors + rows * chunk * key
    forward = errors + reads + writes + inside
    return int(2 * tokens * (2 * forward + recomputed if backward else forward))


def update_flops(args: Sequence[Any]) -> int:
    """Operations of one omega_rule_update, from its arguments' shapes."""
    q, _, v, gamma = args[:4]
    l2, degree, ns_steps = args[16] == "l2", args[19], args[20]
    features, value, window = features_of(q[2], degree), v[2], gamma[2]
    short, long = min(features, value), max(features, value)
    orthogonalise = ns_steps * (2 * short**2 * long + short**3) / args[23]
    state = features * value
    return int(2 * q[0] * q[1] * (((2 if l2 else 1) * window + 3) * state + orthogonalise))
