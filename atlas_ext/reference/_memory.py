"""The memories M(.) and their inner gradients (docs/math/omega_rule.md, section 1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

ACTIVATIONS = ("gelu", "silu", "identity")
OBJECTIVES = ("l2", "dot")

Map = Callable[[Tensor], Tensor]  # [N, H, n, in] -> [N, H, n, out]
Matrices = tuple[Tensor, ...]  # (W,) | (W1, W2) | (W1, W3, W2), each [N, H, out, in]


def activate(
    name: str,
    z: Tensor,  # any shape
) -> tuple[Tensor, Tensor]:
    """act(z) and act'(z)."""
    if name == "identity":
        return z, torch.ones_like(z)
    if name == "silu":
        gate = torch.sigmoid(z)
        return z * gate, gate * (1 + z * (1 - gate))
    normal = 0.5 * (1 + torch.erf(z / math.sqrt(2.0)))
    density = torch.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return z * normal, normal + z * density


def linear_maps(weights: Matrices) -> list[Map]:
    """x -> W x for every matrix; rows hold vectors, so W x reads x @ Wᵀ."""

    def linear(weight: Tensor) -> Map:
        return lambda x: x @ weight.mT

    return [linear(weight) for weight in weights]


def read(
    maps: Sequence[Map],  # one for each matrix of the memory
    x: Tensor,  # [N, H, n, D] lifted inputs
    raw: Tensor | None,  # [N, H, n, V] raw inputs, None: no residual
    activation: str,
) -> Tensor:  # [N, H, n, V]
    """M(x) for n inputs (section 1, eq. 1)."""
    if len(maps) == 1:
        y = maps[0](x)
    elif len(maps) == 2:
        y = maps[1](activate(activation, maps[0](x))[0])
    else:
        y = maps[2](activate(activation, maps[0](x))[0] * maps[1](x))
    return y if raw is None else raw + y


def layer_gradients(
    maps: Sequence[Map],  # one for each matrix of the memory
    last: Tensor | None,  # [N, H, V, F] W2, for the way back; unused by a linear memory
    x: Tensor,  # [N, H, n, D]
    raw: Tensor | None,  # [N, H, n, V]
    v: Tensor,  # [N, H, n, V]
    objective: str,
    activation: str,
) -> tuple[tuple[Tensor, Tensor], ...]:  # per matrix: d [N, H, n, out], input [N, H, n, in]
    """grad_W l(M; k_i, v_i) = d_i input_iᵀ for every matrix (section 1, eqs. 3 to 6)."""

    def error(y: Tensor) -> Tensor:  # eq. (3): d l / d y
        if objective == "dot":
            return -v
        return (y if raw is None else raw + y) - v

    z1 = maps[0](x)
    if len(maps) == 1 or last is None:
        return ((error(z1), x),)  # eq. (4)
    a1, slope = activate(activation, z1)
    if len(maps) == 2:
        e = error(maps[1](a1))
        return ((e @ last) * slope, x), (e, a1)  # eq. (5)
    z3 = maps[1](x)
    hidden = a1 * z3
    e = error(maps[2](hidden))
    back = e @ last
    return (back * z3 * slope, x), (back * a1, x), (e, hidden)  # eq. (6)
