"""Rotary positions."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(
    x: Tensor,  # [..., H, D], D even
    position: Tensor,  # [...] int64, broadcasts against x's leading dimensions
    base: float,
) -> Tensor:  # as x
    """Turns the pairs (x_i, x_{i+D/2}) by the angles position * base^(-2i/D) (Su et al., RoFormer).

    Angles are computed in float64: in float32 they are off by a radian after some 10^7 tokens.
    """
    half = x.shape[-1] // 2
    exponent = torch.arange(half, device=x.device, dtype=torch.float64) / half
    angle = position.double()[..., None] * torch.pow(base, -exponent)
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = angle.cos().to(dtype)[..., None, :], angle.sin().to(dtype)[..., None, :]
    first, second = x.to(dtype).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)
