"""Newton-Schulz and polynomial features in plain PyTorch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MUON = (3.4445, -4.7750, 2.0315)
EPS = 1e-7


def newton_schulz(
    x: Tensor,  # [..., m, n]
    steps: int = 5,
) -> Tensor:
    """The bmm loop: three products a step, sums folded into `baddbmm`. Returns [..., m, n]."""
    a, b, c = MUON
    flat = x.reshape(-1, *x.shape[-2:])
    if flat.shape[1] > flat.shape[2]:
        flat = flat.mT
    flat = flat / (torch.linalg.matrix_norm(flat, keepdim=True) + EPS)
    for _ in range(steps):
        gram = torch.bmm(flat, flat.mT)
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        flat = torch.baddbmm(flat, poly, flat, beta=a)
    return (flat.mT if x.shape[-2] > x.shape[-1] else flat).reshape(x.shape)


@functools.cache
def monomials(dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Factor indices into (1, x) and weights of all monomials of degree <= 2, in graded order."""
    rows, cols = torch.triu_indices(dim, dim).unbind()
    zeros = torch.zeros(1 + dim, dtype=torch.long)
    left = torch.cat([zeros, rows + 1])
    right = torch.cat([torch.arange(1 + dim), cols + 1])
    # c_2 = 1/sqrt(2!), times sqrt(2) off the diagonal (multinomial coefficient)
    ones = torch.ones(1 + dim, dtype=torch.float64)
    quadratic = torch.where(rows == cols, math.sqrt(0.5), ones[0])
    weight = torch.cat([ones, quadratic])
    return left.to(device), right.to(device), weight.to(device)


def poly_features(
    x: Tensor,  # [..., K]
    products: Callable[..., Tensor] | None = None,
) -> Tensor:  # [..., D]
    """Degree 2 by index-gather. `products`: another than `gathered_products`, say compiled."""
    factors = monomials(x.shape[-1], x.device)
    return (products or gathered_products)(x, *factors)


def gathered_products(
    x: Tensor,  # [..., K]
    left: Tensor,  # [D]
    right: Tensor,  # [D]
    weight: Tensor,  # [D]
) -> Tensor:  # [..., D]
    """Two gathers, two products, nothing concatenated at full size."""
    rows = x.reshape(-1, x.shape[-1])
    lifted = F.pad(rows, (1, 0), value=1.0)
    out = lifted.index_select(1, left) * lifted.index_select(1, right) * weight.to(x.dtype)
    return out.view(*x.shape[:-1], -1)
