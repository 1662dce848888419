"""A memory before training: shapes, scale of M_0, size of a step (docs/models.md)."""

from __future__ import annotations

import math

from ..ops.poly_features import poly_feature_dim

# Values of the gates before training (spec: alpha about 0.99 or more, theta about 0.9).
INITIAL_ALPHA = 0.995
INITIAL_THETA = 0.9
INITIAL_WRITES = 0.125  # sum of the Newton-Schulz steps that a memory holds
DEEP_MARGIN = 16.0  # gamma, theta and M_0 raise what a deep memory's step is multiplied by
INITIAL_GAMMA_SINGLE = 0.95  # a window of one: a sigmoid never reaches 1


def memory_shapes(
    memory: str, head_dim: int, degree: int | None, expansion: int
) -> tuple[tuple[int, int], ...]:
    """Shapes [out, in] of one head's memory weights, in the order `omega_rule` takes them."""
    lifted = head_dim if degree is None else poly_feature_dim(head_dim, degree)
    hidden = expansion * head_dim
    if memory == "linear":
        return ((head_dim, lifted),)
    if memory == "mlp":
        return ((hidden, lifted), (head_dim, hidden))
    if memory == "gated_mlp":
        return ((hidden, lifted), (hidden, lifted), (head_dim, hidden))
    raise ValueError(f"OmegaMemory: memory: wanted 'linear', 'mlp' or 'gated_mlp', got {memory!r}")


def feature_norm(degree: int | None) -> float:
    """||phi(x)|| of a unit vector under the initial scales: the square root of sum_l 1/l!."""
    if degree is None:
        return 1.0
    return math.sqrt(sum(1 / math.factorial(n) for n in range(degree + 1)))


def initial_stds(
    shapes: tuple[tuple[int, int], ...], degree: int | None, activation: str
) -> tuple[float, ...]:
    """Standard deviations of M_0's matrices.

    Keys have norm 1, so the usual 1/sqrt(fan-in) would leave a deep memory's hidden units close to
    0, and its weights without a gradient. Here the hidden vector has a norm of about 1 and W2 a
    spectral norm that passes an error back to W1 unamplified: each matrix then adds at most about
    1 to the curvature of the inner loss, which is what `default_step_size` counts on. The learned
    part of the output has about half the norm of the residual one.
    """
    if len(shapes) == 1:  # its scale is that of all it reads: the output's norm takes it out
        return (0.5 * shapes[0][1] ** -0.5,)
    value, hidden = shapes[-1]
    norm = feature_norm(degree)
    slope = 1.0 if activation == "identity" else 0.5  # of GELU and SiLU near 0
    if len(shapes) == 2:
        first = 1 / (slope * math.sqrt(hidden))
    else:  # slope * z1 * z3 has the variance slope² std⁴
        first = (slope * math.sqrt(hidden)) ** -0.5
    last = 1 / (slope * norm * (math.sqrt(value) + math.sqrt(hidden)))
    return (*[first / norm] * (len(shapes) - 1), last)


def default_step_size(
    objective: str,
    momentum: bool,
    ns_steps: int,
    ns_every: int,
    chunk_size: int,
    *,
    degree: int | None = None,
    matrices: int = 1,
    curvature: float | None = None,
) -> float:
    """A step eta that neither diverges nor swamps the learned memory before training.

    Newton-Schulz output has spectral norm about 1, whatever the gradient: the writes that the
    initial alpha keeps sum to `INITIAL_WRITES` at most, in every matrix. Plain descent on the l2
    loss sees `chunk_size` gradients of the same frozen memory, amplified by the momentum; their
    summed step must stay below the limit of the curvature, which is ||phi(k)||² for a linear memory
    and at first about one per matrix for a deep one (`initial_stds`). A deep one stays well below:
    training raises gamma's sum, theta and the values, and there is no linear regime to return to.
    The dot loss has no curvature in a linear memory; in a deep one each matrix's gradient grows
    with the other, without bound, unless the step stays below what the initial alpha forgets.
    `curvature` is ||phi(k)||² where no polynomial map gives it.
    """
    if ns_steps > 0:
        return INITIAL_WRITES * (1.0 - INITIAL_ALPHA) * ns_every
    gain = 1.0 / (1.0 - INITIAL_THETA) if momentum else 1.0
    if objective == "dot":
        return (1.0 if matrices == 1 else 1.0 - INITIAL_ALPHA) / gain
    if curvature is None:
        curvature = feature_norm(degree) ** 2
    if matrices > 1:
        curvature = DEEP_MARGIN * matrices
    return 1.0 / (gain * min(chunk_size, 64) * curvature)
