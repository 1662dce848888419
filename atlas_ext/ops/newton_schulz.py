"""Newton-Schulz orthogonalisation of batches of matrices (docs/math/newton_schulz.md)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from atlas_ext.ops._common import (
    allow_tf32,
    operators,
    register_autocast,
    register_autograd,
    register_backward_fake,
    register_fake,
    register_first_order,
    register_flops,
)


def newton_schulz(
    x: Tensor,  # [..., m, n]
    steps: int = 5,
    schedule: str | Tensor = "muon",  # "muon" | "polar_express" | [steps, 3]
    *,
    scale: str = "none",
    eps: float = 1e-7,
) -> Tensor:
    """Push the singular values of every matrix towards one, keeping its singular vectors.

    X_0 = x / (||x||_F + eps), then `steps` times X <- a X + (b A + c A^2) X with A = X X^T.

    Args:
        x: `[..., m, n]`, m, n >= 1, float32, float64, bfloat16 or float16; any strides. Computed in
            float32 (float64 for float64).
        steps: number of iterations, at least 1.
        schedule: the a, b, c of every step: "muon" (3.4445, -4.7750, 2.0315 throughout),
            "polar_express" (arXiv 2505.16932), or a floating tensor `[steps, 3]`, a constant.
        scale: factor on the result: "none" 1, "rms" 0.2 sqrt(max(m, n)), "shape"
            sqrt(max(1, m / n)).
        eps: added to the norm.

    Returns:
        `[..., m, n]` in x's dtype. A zero matrix gives zero, with gradient zero. Differentiable
        once with respect to x; the backward computes the iterates anew.

    Raises:
        RuntimeError: naming the argument, what was wanted and what came.

    Source: arXiv 2505.23735, section 5; docs/math/newton_schulz.md.
    """
    table = schedule.detach() if isinstance(schedule, Tensor) else None
    name = "table" if isinstance(schedule, Tensor) else schedule
    return operators().newton_schulz(  # type: ignore[no-any-return]
        x, table, name, steps, scale, eps, allow_tf32()
    )


def _fake(
    x: Tensor, table: Tensor | None, schedule: str, steps: int, scale: str, eps: float, tf32: bool
) -> Tensor:
    return x.new_empty(x.shape)


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    table: Tensor | None,
    schedule: str,
    steps: int,
    scale: str,
    eps: float,
    tf32: bool,
) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, table, *ctx.options = inputs
    ctx.save_for_backward(x, table)


def _backward(operators: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, table = ctx.saved_tensors
    grad_x = operators.newton_schulz_backward(grad, x, table, *ctx.options)
    return grad_x, None, None, None, None, None, None


register_fake("newton_schulz")(_fake)
register_backward_fake("newton_schulz_backward", _backward_fake)
register_autograd("newton_schulz", _backward, _setup_context)
register_first_order("newton_schulz_backward")
register_autocast("newton_schulz", ("x",))
# Casts nothing: it keeps autocast from the matrix products inside.
register_autocast("newton_schulz_backward", ())


def _step_flops(x_shape: Any, long_products: int, short_products: int) -> int:
    """Of one step on all matrices: products [s, s] x [s, l] and [s, s] x [s, s], s <= l."""
    *batch, m, n = x_shape
    total: int = 2 * min(m, n) ** 2 * (long_products * max(m, n) + short_products * min(m, n))
    for size in batch:
        total *= size
    return total


def _flops(
    x_shape: Any,
    table: Any,
    schedule: str,
    steps: int,
    *args: Any,
    out_shape: Any = None,
    **kw: Any,
) -> int:
    """A, P X, and A^2, not counting on symmetry."""
    return steps * _step_flops(x_shape, 2, 1)


def _backward_flops(
    grad_shape: Any,
    x_shape: Any,
    table: Any,
    schedule: str,
    steps: int,
    *args: Any,
    out_shape: Any = None,
    **kw: Any,
) -> int:
    """The iterates anew, then G X^T, P G, (dA + dA^T) X and A dP."""
    return steps * _step_flops(x_shape, 5, 2)


register_flops("newton_schulz", _flops)
register_flops("newton_schulz_backward", _backward_flops)
