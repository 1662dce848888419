"""Newton–Schulz orthogonalisation (docs/math/newton_schulz.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._checks import check, check_choice, check_count, check_floating, compute_dtype

SCHEDULES = ("muon", "polar_express")
SCALES = ("none", "rms", "shape")

MUON = (3.4445, -4.7750, 2.0315)

# Amsel et al., arXiv 2505.16932: rows before the safety division, the eighth repeats for ever.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
_SAFETY = 1.01


def schedule_rows(
    op: str,
    name: str,
    schedule: str | Tensor,  # a name, or [steps, 3]
    steps: int,
) -> list[tuple[float, float, float]]:
    """The (a, b, c) of every step (docs/math/newton_schulz.md, section 1)."""
    if isinstance(schedule, Tensor):
        check_floating(op, name, schedule)
        shape = list(schedule.shape)
        check(shape == [steps, 3], op, name, f"shape [steps, 3] = [{steps}, 3]", shape)
        return [(a, b, c) for a, b, c in schedule.detach().double().tolist()]
    check_choice(op, name, schedule, SCHEDULES)
    if schedule == "muon":
        return [MUON] * steps
    safe = [(a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _POLAR_EXPRESS[:-1]]
    table = [*safe, _POLAR_EXPRESS[-1]]
    return [table[min(step, len(table) - 1)] for step in range(steps)]


def output_factor(scale: str, rows: int, columns: int) -> float:
    """Factor on the result, of the matrix as given (docs/math/newton_schulz.md, section 1)."""
    if scale == "rms":
        return 0.2 * math.sqrt(max(rows, columns))
    if scale == "shape":
        return math.sqrt(max(1.0, rows / columns))
    return 1.0


def newton_schulz(
    x: Tensor,  # [..., m, n]
    steps: int = 5,
    schedule: str | Tensor = "muon",  # "muon" | "polar_express" | [steps, 3]
    *,
    scale: str = "none",
    eps: float = 1e-7,
) -> Tensor:  # [..., m, n]
    """Push the singular values of every matrix towards one: X <- a X + (b A + c A²) X, A = X Xᵀ.

    ``scale`` multiplies the result: "none" 1, "rms" 0.2 sqrt(max(m, n)), "shape"
    sqrt(max(1, m/n)). A zero matrix gives zero, with gradient zero. Computed in float32 (float64
    for float64), returned in x's dtype. Raises ValueError for a rank below 2, an unknown schedule
    or scale, and steps below 1. Source: arXiv 2505.23735, section 5; docs/math/newton_schulz.md.
    """
    op = "newton_schulz"
    check_floating(op, "x", x)
    shape = list(x.shape)
    check(len(shape) >= 2 and min(shape[-2:]) >= 1, op, "x", "[..., m, n] with m, n >= 1", shape)
    check_count(op, "steps", steps, 1)
    check_choice(op, "scale", scale, SCALES)
    check(
        isinstance(eps, (int, float)) and 0.0 <= eps < math.inf,
        op,
        "eps",
        "a finite number >= 0",
        repr(eps),
    )
    rows = schedule_rows(op, "schedule", schedule, steps)
    return orthogonalise(x.to(compute_dtype(x)), rows, scale, eps).to(x.dtype)


def orthogonalise(
    x: Tensor,  # [..., m, n] in the compute dtype
    rows: list[tuple[float, float, float]],
    scale: str,
    eps: float,
) -> Tensor:  # [..., m, n]
    # Section 4: value and gradient at a zero matrix are zero by definition; the detour through
    # ones keeps the unused branch finite, so that the mask multiplies nothing infinite.
    zero = (x == 0).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)  # [..., 1, 1]
    safe = torch.where(zero, torch.ones_like(x), x)
    transposed = x.shape[-2] > x.shape[-1]
    y = safe.mT if transposed else safe
    # eq. (1): X_0 = S / (||S||_F + eps)
    y = y / (torch.linalg.vector_norm(y, dim=(-2, -1), keepdim=True) + eps)
    for a, b, c in rows:
        gram = y @ y.mT
        y = a * y + (b * gram + c * gram @ gram) @ y  # eq. (2)
    y = output_factor(scale, x.shape[-2], x.shape[-1]) * (y.mT if transposed else y)
    return torch.where(zero, torch.zeros_like(x), y)
