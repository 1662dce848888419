"""Polynomial feature map phi (docs/math/poly_features.md)."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter

import torch
from torch import Tensor

from ._checks import check, check_floating, compute_dtype

MAX_DEGREE = 4


@functools.lru_cache(maxsize=64)
def monomials(dim: int, degree: int) -> tuple[tuple[int, ...], ...]:
    """Index tuples of the monomials of exactly this degree, i <= j <= ..., last index fastest."""
    return tuple(itertools.combinations_with_replacement(range(dim), degree))


@functools.lru_cache(maxsize=64)
def _tables(dim: int, degree: int) -> tuple[Tensor, Tensor]:
    """Indices [degree, M] of the monomials' factors and sqrt(multinomial coefficient) [M]."""
    terms = monomials(dim, degree)
    weights = [
        math.sqrt(
            math.factorial(degree)
            / math.prod(math.factorial(power) for power in Counter(term).values())
        )
        for term in terms
    ]
    indices = torch.tensor(terms, dtype=torch.int64).reshape(len(terms), degree)
    return indices.T.contiguous(), torch.tensor(weights, dtype=torch.float64)


def check_degree(op: str, degree: int) -> None:
    check(
        isinstance(degree, int) and 1 <= degree <= MAX_DEGREE,
        op,
        "degree",
        f"an integer from 1 to {MAX_DEGREE}",
        degree,
    )


def check_scales(op: str, name: str, scales: Tensor | None, degree: int) -> None:
    if scales is not None:
        check_floating(op, name, scales)
        check(
            scales.shape == (degree + 1,),
            op,
            name,
            f"shape [{degree + 1}] (degree + 1)",
            list(scales.shape),
        )


def poly_features(
    x: Tensor,  # [..., K]
    degree: int = 2,
    scales: Tensor | None = None,  # [degree+1], the c_l
) -> Tensor:  # [..., D], D = C(K + degree, degree)
    """All monomials of total degree <= ``degree``: phi(x)·phi(y) = sum_l c_l² (x·y)^l exactly.

    The order is graded: 1, then x_i, then x_i x_j (i <= j), and so on; ``scales`` default to
    c_l = 1/sqrt(l!), which makes the kernel the truncated exponential. Any floating dtype,
    computed in float32 (float64 for float64) and returned in x's dtype. Raises ValueError for a
    degree outside 1..4 and for scales of another shape.
    Source: arXiv 2505.23735, section 3.1; docs/math/poly_features.md.
    """
    op = "poly_features"
    check_floating(op, "x", x)
    check(x.dim() >= 1, op, "x", "at least one dimension [..., K]", list(x.shape))
    check(x.dim() < 1 or x.shape[-1] >= 1, op, "x", "K >= 1 in [..., K]", list(x.shape))
    check_degree(op, degree)
    check_scales(op, "scales", scales, degree)
    dtype = compute_dtype(x)
    values = x.to(dtype)
    c = default_scales(degree, x) if scales is None else scales.to(dtype)

    blocks = [c[0].expand(*x.shape[:-1], 1)]  # the constant, c_0 (section 1)
    for level in range(1, degree + 1):
        indices, weights = _tables(x.shape[-1], level)
        product = values[..., indices[0].to(x.device)]
        for factor in indices[1:]:
            product = product * values[..., factor.to(x.device)]
        # eq. (1): phi_i1..il(x) = c_l sqrt(multinomial) x_i1 ... x_il
        blocks.append(c[level] * weights.to(device=x.device, dtype=dtype) * product)
    return torch.cat(blocks, dim=-1).to(x.dtype)


def default_scales(degree: int, like: Tensor) -> Tensor:
    """c_l = 1/sqrt(l!), [degree+1], in the compute dtype of ``like``."""
    values = [1.0 / math.sqrt(math.factorial(level)) for level in range(degree + 1)]
    return torch.tensor(values, dtype=compute_dtype(like), device=like.device)
