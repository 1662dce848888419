"""The Omega rule with Newton-Schulz, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.eager.chunks import Chunks, Scans
from bench.eager.memory import activate, gradients, is_gated, layers_of
from bench.eager.small import newton_schulz, poly_features


def muon_step(
    layers: list[Tensor],  # each [G, out, in]
    momenta: list[Tensor],  # each [G, out*in]
    rows: tuple[Tensor, Tensor, Tensor],  # queries, keys, targets of a chunk
    gates: tuple[Tensor, ...],  # gamma [G, C, W], eta, log_alpha, log_theta [G, C]
    gated: bool,
    steps: int,
    every: int,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """What is read, [G, C, V], and weights and momenta after the chunk.

    Per layer: one product for all S_t, one batched bmm loop, one for all M_t.
    """
    u, keys, targets = rows
    now = Scans.of(*gates)
    alpha, theta = now.alpha.unsqueeze(-1), now.theta.unsqueeze(-1)
    left: list[Tensor] = []
    kept: list[Tensor] = []
    for layer, (d, x) in enumerate(gradients(layers, keys, targets)):
        weight = layers[layer]
        parts = 2 if gated and layer == 0 else 1  # W1 and W3 are orthogonalised on their own
        outer = _outer(d, x, parts)
        carried = theta * momenta[layer].unsqueeze(1)
        all_momenta = torch.baddbmm(carried, now.gates, outer.flatten(2))  # [G, C, size]
        chosen = all_momenta[:, every - 1 :: every]
        written = newton_schulz(chosen.reshape(-1, *outer.shape[-2:]), steps)
        moved = torch.bmm(now.step[..., every - 1 :: every], written.view_as(chosen))
        moved = moved.view(*now.alpha.shape, *outer.shape[2:])  # [G, C, parts, rows, columns]
        u = activate(u, gated) if layer == 1 else u
        u = alpha * torch.bmm(u, weight.mT) - _apply(moved, u)
        kept.append(all_momenta[:, -1])
        last = moved[:, -1].mT if _is_tall(d, x, parts) else moved[:, -1]
        left.append(now.alpha[:, -1, None, None] * weight - last.reshape(weight.shape))
    return u, left, kept


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
    degree: int | None = None,
    steps: int = 5,
    every: int = 1,  # a divisor of chunk_size
    chunk_size: int = 64,
    step: Callable[..., Any] = muon_step,
) -> Tensor:  # [B, T, H, V]
    """One chunk after the other; `step`: or compiled."""
    chunks = Chunks(chunk_size, gamma.shape[-1], q)
    lifted = (poly_features(q), poly_features(k)) if degree == 2 else (q, k)
    queries, keys = chunks.cut(lifted[0]), chunks.cut_with_overhang(lifted[1])
    targets = chunks.cut_with_overhang(v - k if residual else v)
    gates = [chunks.cut(x) for x in (gamma, eta, log_alpha, log_theta)]
    layers = layers_of(weights, chunks.batch)
    gated, outs = is_gated(layers), []
    momenta = [torch.zeros_like(layer).flatten(1) for layer in layers]
    for n in range(chunks.count):
        u, layers, momenta = step(
            layers, momenta, (queries[n], keys[n], targets[n]), tuple(gate[n] for gate in gates),
            gated, steps, every,
        )  # fmt: skip
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
