"""Polynomial feature map: all monomials of total degree at most p (docs/math/poly_features.md)."""

from __future__ import annotations

from math import comb
from typing import Any

from torch import Tensor

from atlas_ext.ops._common import (
    grad_mask,
    operators,
    register_autocast,
    register_autograd,
    register_backward_fake,
    register_fake,
    register_first_order,
    register_flops,
)


def poly_feature_dim(dim: int, degree: int) -> int:
    """D = C(dim + degree, degree), the monomials of total degree at most `degree`."""
    return comb(dim + degree, degree)


def poly_features(
    x: Tensor,  # [..., K]
    degree: int = 2,
    scales: Tensor | None = None,  # [degree + 1]
) -> Tensor:
    """Map x to all its monomials of total degree at most `degree`, in graded order.

    The monomials of degree l carry c_l * sqrt(multinomial coefficient), so that
    phi(x) . phi(y) = sum_l c_l^2 (x . y)^l exactly.

    Args:
        x: `[..., K]`, float32, float64, bfloat16 or float16; any strides.
        degree: 1 to 4.
        scales: the c_l, `[degree + 1]`, in x's dtype or float32; default 1/sqrt(l!), which makes
            the kernel the truncated exponential.

    Returns:
        `[..., D]` in x's dtype, D = `poly_feature_dim(K, degree)`: 1, then x_i, then x_i x_j
        (i <= j, row-major), and so on. Differentiable once with respect to x and scales.

    Raises:
        RuntimeError: naming the argument, what was wanted and what came.

    Source: arXiv 2505.23735, section 3.1; docs/math/poly_features.md.
    """
    return operators().poly_features(x, scales, degree)  # type: ignore[no-any-return]


def _fake(x: Tensor, scales: Tensor | None, degree: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], poly_feature_dim(x.shape[-1], degree)))


def _backward_fake(
    grad: Tensor, x: Tensor, scales: Tensor | None, degree: int, mask: int
) -> tuple[Tensor, Tensor]:
    grad_x = x.new_empty(x.shape if mask & 1 else (0,))
    wanted = scales is not None and mask & 2
    return grad_x, scales.new_empty(degree + 1) if wanted else x.new_empty(0)  # type: ignore[union-attr]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scales, ctx.degree = inputs
    ctx.save_for_backward(x, scales)


def _backward(operators: Any, ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, scales = ctx.saved_tensors
    needed = ctx.needs_input_grad[:2]
    grad_x, grad_scales = operators.poly_features_backward(
        grad, x, scales, ctx.degree, grad_mask(needed)
    )
    return grad_x if needed[0] else None, grad_scales if needed[1] else None, None


register_fake("poly_features")(_fake)
register_backward_fake("poly_features_backward", _backward_fake)
register_autograd("poly_features", _backward, _setup_context)
register_first_order("poly_features_backward")
register_autocast("poly_features", ("x",))


def _flops(x_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Two products an output element: the monomial and its weight."""
    total = 2
    for size in out_shape:
        total *= size
    return total


def _backward_flops(grad_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Seven an element of grad: weight, dot, scale and the product into the level below."""
    total = 7
    for size in grad_shape:
        total *= size
    return total


register_flops("poly_features", _flops)
register_flops("poly_features_backward", _backward_flops)
