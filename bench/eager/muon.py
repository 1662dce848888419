"""The Omega rule with Newton-Schulz at every token, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from bench.eager.chunks import Chunks, Scans
from bench.eager.memory import activate, gradients, is_gated, layers_of
from bench.eager.small import newton_schulz


def omega_rule_muon(
    q: Tensor,  # [B, T, H, K]
    k: Tensor,  # [B, T, H, K]
    v: Tensor,  # [B, T, H, V]
    gamma: Tensor,  # [B, T, H, W]
    eta: Tensor,  # [B, T, H]
    log_alpha: Tensor,  # [B, T, H]
    log_theta: Tensor,  # [B, T, H]
    weights: tuple[Tensor, ...],  # (W,) | (W1, W2) | (W1, W3, W2), each [H, out, in]
    *,
    residual: bool = False,
    steps: int = 5,
    chunk_size: int = 64,
) -> Tensor:  # [B, T, H, V]
    """Per chunk and layer: one product for all S_t, one batched bmm loop, one for all M_t."""
    chunks = Chunks(chunk_size, gamma.shape[-1], q)
    queries, keys = chunks.cut(q), chunks.cut_with_overhang(k)
    targets = chunks.cut_with_overhang(v - k if residual else v)
    scans = Scans.of(*(chunks.cut(x) for x in (gamma, eta, log_alpha, log_theta)))
    layers = layers_of(weights, chunks.batch)
    gated, outs = is_gated(layers), []
    momenta = [torch.zeros_like(layer).flatten(1) for layer in layers]
    for n in range(chunks.count):
        now, u = scans.chunk(n), queries[n]
        alpha, theta = now.alpha.unsqueeze(-1), now.theta.unsqueeze(-1)
        for layer, (d, x) in enumerate(gradients(layers, keys[n], targets[n])):
            weight = layers[layer]
            parts = 2 if gated and layer == 0 else 1  # W1 and W3 are orthogonalised on their own
            outer = _outer(d, x, parts)
            carried = theta * momenta[layer].unsqueeze(1)
            all_momenta = torch.baddbmm(carried, now.gates, outer.flatten(2))  # [G, C, size]
            written = newton_schulz(all_momenta.view(-1, *outer.shape[-2:]), steps)
            moved = torch.bmm(now.step, written.view_as(all_momenta))
            moved = moved.view(*now.alpha.shape, *outer.shape[2:])  # [G, C, parts, rows, columns]
            u = activate(u, gated) if layer == 1 else u
            u = alpha * torch.bmm(u, weight.mT) - _apply(moved, u)
            momenta[layer] = all_momenta[:, -1]
            left = moved[:, -1].mT if _is_tall(d, x, parts) else moved[:, -1]
            layers[layer] = now.alpha[:, -1, None, None] * weight - left.reshape(weight.shape)
        outs.append(u)
    out = chunks.join(torch.cat(outs))
    return out + q if residual else out


def _is_tall(d: Tensor, x: Tensor, parts: int) -> bool:
    """Tall matrices are held transposed, so that Newton-Schulz has nothing to turn round."""
    return d.shape[-1] // parts > x.shape[-1]


def _outer(d: Tensor, x: Tensor, parts: int) -> Tensor:  # [G, L, parts, rows, columns]
    d, x = d.unflatten(-1, (parts, -1)), x.unsqueeze(-2)
    if _is_tall(d, x, 1):
        return x.unsqueeze(-1) * d.unsqueeze(-2)
    return d.unsqueeze(-1) * x.unsqueeze(-2)


def _apply(moved: Tensor, u: Tensor) -> Tensor:
    """One matrix per token, [G, C, parts, rows, columns], times its u, [G, C, in]."""
    *lead, parts, rows, columns = moved.shape
    u = u.unsqueeze(2).expand(*lead, parts, -1)
    if rows == u.shape[-1] and rows < columns:
        out = torch.bmm(u.reshape(-1, 1, rows), moved.flatten(0, 2))
    else:
        out = torch.bmm(moved.flatten(0, 2), u.reshape(-1, columns, 1))
    return out.view(*lead, -1)
