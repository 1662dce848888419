"""Operations of the Omega rule's matrix products, from shapes (docs/performance.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from atlas_ext.ops._omega_common import features_of, memory_shapes


def _newton_schulz(matrices: Sequence[tuple[Any, Any]], steps: int) -> Any:
    """Multiply-adds of orthogonalising every matrix once."""
    total = 0
    for rows, columns in matrices:
        short, long = min(rows, columns), max(rows, columns)
        total += steps * (2 * short**2 * long + short**3)
    return total


def _errors(matrices: Sequence[tuple[Any, Any]], l2: bool) -> Any:
    """Multiply-adds of one row's error signals at M_ref: its forward pass and the way back."""
    last = matrices[-1][0] * matrices[-1][1]
    forward = sum(rows * columns for rows, columns in matrices)
    # Without an error there is no last product; W2ᵀe is the way back of a deep memory.
    return forward - (0 if l2 else last) + (last if len(matrices) > 1 else 0)


def chunk_flops(inputs: Sequence[Any], options: Sequence[Any], backward: bool) -> int:
    """Operations of omega_rule or its backward, from the shapes of its inputs."""
    q, _, v, gamma = inputs[:4]
    momentum, l2, degree, ns_steps = inputs[6] is not None, options[0] == "l2", *options[3:5]
    ns_every, chunk = options[7], min(options[8], max(q[1], 1))
    matrices = memory_shapes(inputs[7], v[3], features_of(q[3], degree))
    tokens, key = q[0] * q[1] * q[2], q[3]
    rows = (chunk + gamma[3] - 1) / chunk  # window rows a token of the chunk
    state = sum(out * width for out, width in matrices)  # one multiplication per weight
    first = state - matrices[-1][0] * matrices[-1][1]  # of W1 and W3
    errors = rows * _errors(matrices, l2)
    if ns_steps > 0:
        orthogonalise = _newton_schulz(matrices, ns_steps) / ns_every
        total = errors + state + gamma[3] * state + orthogonalise
        # The backward makes the chunk's states anew before it differentiates each product twice.
        return int(2 * tokens * (3 * total + orthogonalise if backward else total))
    states = 2 if momentum else 1
    # Causal products: scores of keys for W1 and W3 together, of hidden vectors for W2; the hidden
    # vectors are all that the backward needs of the reads.
    scores = rows * chunk * (key + (matrices[-1][1] if len(matrices) > 1 else 0))
    hidden = states * first + rows * chunk * sum(out for out, _ in matrices[:-1])
    last = states * (state - first) + rows * chunk * matrices[-1][0]
    forward = errors + states * rows * state + scores + hidden + last
    recomputed = errors + scores + hidden
    return int(2 * tokens * (2 * forward + recomputed if backward else forward))


def update_flops(args: Sequence[Any]) -> int:
    """Operations of one omega_rule_update, from its arguments' shapes."""
    q, _, v, gamma = args[:4]
    l2, degree, ns_steps = args[16] == "l2", args[19], args[20]
    matrices = memory_shapes(args[7], v[2], features_of(q[2], degree))
    state = sum(out * width for out, width in matrices)
    window = gamma[2] * (_errors(matrices, l2) + state)
    orthogonalise = _newton_schulz(matrices, ns_steps) / args[23]
    return int(2 * q[0] * q[1] * (window + 3 * state + orthogonalise))
