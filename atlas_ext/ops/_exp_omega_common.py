"""What exp_omega_rule and exp_omega_rule_update share: types of arguments, counts of work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from atlas_ext.ops._omega_common import check_matrices_type
from atlas_ext.state import ExpOmegaState


def scale_argument(op: str, scale: Any, key_dim: int) -> float:
    """The factor of the products inside exp."""
    if scale is None:
        return float(key_dim**-0.5)
    if not isinstance(scale, int | float):
        raise ValueError(f"{op}: scale: wanted a number or None, got {type(scale).__name__}")
    if not math.isfinite(scale):
        raise ValueError(f"{op}: scale: wanted a finite number, got {scale}")
    return float(scale)


def check_exp_state_type(op: str, name: str, state: Any) -> None:
    if not isinstance(state, ExpOmegaState):
        raise ValueError(f"{op}: {name}: wanted an ExpOmegaState, got {type(state).__name__}")
    for field in ("coefficients", "weights", "chunk_weights", "momentum"):
        if field != "momentum" or state.momentum is not None:
            check_matrices_type(op, f"{name}.{field}", getattr(state, field))


def state_lists(state: ExpOmegaState) -> tuple[Any, ...]:
    """weights, keys, coefficients, momentum, chunk_weights, tails, position, as the schema goes."""
    momentum = [] if state.momentum is None else list(state.momentum)
    return (
        *(list(state.weights), state.keys, list(state.coefficients), momentum),
        *(list(state.chunk_weights), state.k_tail, state.v_tail, state.position),
    )


def row_width(weights: Sequence[Any], value: Any) -> Any:
    """R: V of a linear memory, F of a deep one."""
    return weights[0].shape[-2] if len(weights) else value


def row_sets(weights: Sequence[Any]) -> int:
    """How many rows a token has: two of a gated memory."""
    return max(1, len(weights) - 1)


def pass_flops(
    inputs: Sequence[Any],  # q to cu_seqlens
    options: Sequence[Any],  # objective to chunk_size
    backward: bool,
) -> int:
    """Operations of the matrix products, from shapes: every token takes the mean of what it sees.

    Rows of a state are counted as far as there is room for them; packed sequences as one.
    """
    q, _, v, gamma = (x for x in inputs[:4])
    momentum, weights, keys = inputs[6] is not None, inputs[7], inputs[8]
    key, value = q[3], v[3]
    tokens, chunk = q[0] * q[1] * q[2], min(options[5], max(q[1], 1))
    deep = len(weights) > 0
    wide = (max(1, len(weights) - 1)) * (weights[0][2] if deep else value)
    seen = (0 if keys is None else keys[1]) + q[1] / 2
    overlap = (chunk + gamma[3] - 1) / chunk  # window rows a token of the chunk
    states = 2 if momentum else 1
    reads = seen * (key + states * wide) + overlap * chunk * wide
    signals = seen * overlap * (key + wide) if deep or options[0] == "l2" else 0
    hidden = weights[-1][3] if deep else 0
    raw = (1 + overlap) * wide * key if deep else 0
    last = ((states + 2 * overlap) * value + overlap * chunk * 2) * hidden
    forward = reads + signals + raw + last
    # Scores once more; each product twice, of the read's momentum as of its rows.
    recomputed = seen * key * (2 if signals else 1)
    return int(2 * tokens * (2 * forward + recomputed if backward else forward))


def token_flops(args: Sequence[Any]) -> int:
    """Operations of one exp_omega_rule_update, from its arguments' shapes: the whole capacity."""
    q, _, v, gamma = args[:4]
    key, value, weights, seen = q[2], v[2], args[7], args[8][1]
    deep = len(weights) > 0
    wide = row_sets(weights) * (weights[0][2] if deep else value)
    queries = gamma[2] if deep or args[15] == "l2" else 0
    matrices = sum(w[2] * w[3] for w in weights)
    rows = seen * (queries * (key + wide) + key + 2 * wide)
    return int(2 * q[0] * q[1] * (rows + (2 * gamma[2] + 3) * matrices))
