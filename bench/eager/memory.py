"""Linear, MLP and gated MLP memories in plain PyTorch, batched over groups (sequence and head).

A memory is a list of one or two layers: the gated one keeps W1 above W3 in one matrix, since both
see the same inputs and are written by the same rule.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Layers = list[Tensor]  # each [G, out, in]


def layers_of(weights: tuple[Tensor, ...], batch: int) -> Layers:
    """(W,), (W1, W2) or (W1, W3, W2), each [H, out, in], for every sequence of the batch."""
    *first, last = weights
    stacked = [*([torch.cat(first, 1) if len(first) > 1 else first[0]] if first else []), last]
    return [w.expand(batch, *w.shape).flatten(0, 1) for w in stacked]


def is_gated(layers: Layers) -> bool:
    return len(layers) == 2 and layers[0].shape[-2] == 2 * layers[1].shape[-1]


def activate(z: Tensor, gated: bool) -> Tensor:  # [..., F or 2F] -> [..., F]
    if not gated:
        return F.gelu(z)
    z, gate = z.chunk(2, dim=-1)
    return F.gelu(z) * gate


def gradients(
    layers: Layers,
    x: Tensor,  # [G, L, D]
    target: Tensor,  # [G, L, V], less the residual
) -> list[tuple[Tensor, Tensor]]:  # per layer: d [G, L, out], input [G, L, in]
    """grad_W l = d input^T of the l2 loss, for every layer."""
    gelu_backward = torch.ops.aten.gelu_backward  # g * gelu'(z) in one pass, differentiable
    *first, last = layers
    if not first:
        return [(torch.baddbmm(target, x, last.mT, beta=-1), x)]
    z = torch.bmm(x, first[0].mT)
    if not is_gated(layers):
        hidden = F.gelu(z)
        error = torch.baddbmm(target, hidden, last.mT, beta=-1)
        return [(gelu_backward(torch.bmm(error, last), z), x), (error, hidden)]
    z, gate = z.chunk(2, dim=-1)
    activated = F.gelu(z)
    hidden = activated * gate
    error = torch.baddbmm(target, hidden, last.mT, beta=-1)
    back = torch.bmm(error, last)
    both = torch.cat([gelu_backward(back * gate, z), back * activated], dim=-1)
    return [(both, x), (error, hidden)]
