"""The Omega rule in its dual form, in plain PyTorch: chunk by chunk, and hoisted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bench.eager.chunks import Chunks, Scans
from bench.eager.memory import activate, gradients, is_gated, layers_of
from bench.eager.small import poly_features

Matrices = tuple[Tensor, ...]  # (W,) | (W1, W2) | (W1, W3, W2), each [H, out, in]


def kernel(scores: Tensor, degree: int | None) -> Tensor:
    return scores if degree is None else 0.5 * scores.square() + scores + 1.0


def read(
    u: Tensor,  # [G, C, in]
    weight: Tensor,  # [G, out, in]
    momentum: Tensor,  # [G, out, in]
    scans: Scans,
    scores: Tensor,  # [G, C, L]
    d: Tensor,  # [G, L, out]
) -> Tensor:  # [G, C, out]
    """W_t u_t for all tokens of a chunk; factors are multiplied in on the narrow side."""
    alpha, old = scans.alpha.unsqueeze(-1), scans.old.unsqueeze(-1)
    if weight.shape[-1] <= weight.shape[-2]:
        own = torch.bmm(alpha * u, weight.mT)
        own = torch.baddbmm(own, old * u, momentum.mT, alpha=-1)
    else:
        own = alpha * torch.bmm(u, weight.mT) - old * torch.bmm(u, momentum.mT)
    return torch.baddbmm(own, scans.coefficients * scores, d, alpha=-1)


def write(
    weight: Tensor,  # [G, out, in]
    momentum: Tensor,  # [G, out, in]
    scans: Scans,
    d: Tensor,  # [G, L, out]
    x: Tensor,  # [G, L, in]
) -> tuple[Tensor, Tensor]:
    """What the chunk leaves; factors are multiplied in on the narrow side."""

    def product(factors: Tensor) -> tuple[Tensor, Tensor]:
        factors = factors.unsqueeze(-1)
        if d.shape[-1] <= x.shape[-1]:
            return (factors * d).mT, x
        return d.mT, factors * x

    alpha, old, theta = (s[:, -1, None, None] for s in (scans.alpha, scans.old, scans.theta))
    kept = alpha * weight - old * momentum
    return (
        torch.baddbmm(kept, *product(scans.coefficients[:, -1]), alpha=-1),
        torch.baddbmm(theta * momentum, *product(scans.gates[:, -1])),
    )


def last_rows(scans: Scans) -> tuple[Tensor, Tensor]:
    """What chunks leave, M and S as one: [n, G, 2, 2] of the entering two, [n, G, 2, 1, L]."""
    alpha, old, theta = (s[..., -1] for s in (scans.alpha, scans.old, scans.theta))
    mix = torch.stack([alpha, -old, torch.zeros_like(alpha), theta], -1).unflatten(-1, (2, 2))
    push = torch.stack([-scans.coefficients[..., -1, :], scans.gates[..., -1, :]], 2)
    return mix, push.unsqueeze(3)


def write_both(state: Tensor, mix: Tensor, push: Tensor, d: Tensor, x: Tensor) -> Tensor:
    """Weight and momentum, [G, 2, out*in], after a chunk: two products, no sums beside them."""
    written = torch.bmm((push * d.mT.unsqueeze(1)).flatten(1, 2), x)  # [G, 2*out, in]
    return torch.baddbmm(written.view_as(state), mix, state)


def chunk_step(
    layers: list[Tensor],  # each [G, out, in]
    momenta: list[Tensor],
    rows: tuple[Tensor, ...],  # queries, keys and targets of a chunk; raw queries and keys
    gates: tuple[Tensor, ...],  # gamma [G, C, W], eta, log_alpha, log_theta [G, C]
    degree: int | None,
    gated: bool,
    last: bool,  # nobody reads what the chunk leaves
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """What is read, [G, C, V], and weights and momenta after the chunk."""
    u, keys, targets, raw_queries, raw_keys = rows
    scans = Scans.of(*gates)
    scores = kernel(torch.bmm(raw_queries, raw_keys.mT), degree)
    pairs = gradients(layers, keys, targets)
    u = read(u, layers[0], momenta[0], scans, scores, pairs[0][0])
    if len(layers) == 2:
        u = activate(u, gated)
        d, x = pairs[1]
        u = read(u, layers[1], momenta[1], scans, torch.bmm(u, x.mT), d)
    if last:
        return u, layers, momenta
    left = [write(w, s, scans, *p) for w, s, p in zip(layers, momenta, pairs, strict=True)]
    return u, [pair[0] for pair in left], [pair[1] for pair in left]


def omega_rule_by_chunk(
    q: Tensor,  # [B, T, H, K]
    k: Tensor,  # [B, T, H, K]
    v: Tensor,  # [B, T, H, V]
    gamma: Tensor,  # [B, T, H, W]
    eta: Tensor,  # [B, T, H]
    log_alpha: Tensor,  # [B, T, H]
    log_theta: Tensor,  # [B, T, H]
    weights: Matrices,
    *,
    residual: bool = False,
    degree: int | None = None,
    chunk_size: int = 64,
    step: Callable[..., Any] = chunk_step,
) -> Tensor:  # [B, T, H, V]
    """One chunk after the other: what a careful author writes first. `step`: or compiled."""
    chunks = Chunks(chunk_size, gamma.shape[-1], q)
    raw_queries, raw_keys = chunks.cut(q), chunks.cut_with_overhang(k)
    queries, keys = raw_queries, raw_keys
    if degree == 2:
        queries, keys = chunks.cut(poly_features(q)), chunks.cut_with_overhang(poly_features(k))
    targets = chunks.cut_with_overhang(v - k if residual else v)
    rows = (queries, keys, targets, raw_queries, raw_keys)
    gates = [chunks.cut(x) for x in (gamma, eta, log_alpha, log_theta)]

    layers = layers_of(weights, chunks.batch)
    momenta = [torch.zeros_like(layer) for layer in layers]
    gated, outs = is_gated(layers), []
    for n in range(chunks.count):
        u, layers, momenta = step(
            layers, momenta, tuple(row[n] for row in rows), tuple(gate[n] for gate in gates),
            degree, gated, n + 1 == chunks.count,
        )  # fmt: skip
        outs.append(u)
    out = chunks.join(torch.cat(outs))
    return out + q if residual else out


def omega_rule(
    q: Tensor,  # [B, T, H, K]
    k: Tensor,  # [B, T, H, K]
    v: Tensor,  # [B, T, H, V]
    gamma: Tensor,  # [B, T, H, W]
    eta: Tensor,  # [B, T, H]
    log_alpha: Tensor,  # [B, T, H]
    log_theta: Tensor,  # [B, T, H]
    weights: Matrices,
    *,
    residual: bool = False,
    degree: int | None = None,
    chunk_size: int = 64,
) -> Tensor:  # [B, T, H, V]
    """All state-free work batched over chunks; in the loop: error signals and the state.

    Faster than chunk by chunk, at the price of holding every chunk's scores, errors and states.
    """
    chunks = Chunks(chunk_size, gamma.shape[-1], q)
    scores = torch.matmul(chunks.cut(q), chunks.cut_with_overhang(k).mT)  # [n, G, C, L]
    scores = kernel(scores, degree).flatten(0, 1)
    targets = chunks.cut_with_overhang(v - k if residual else v)
    raw = q
    if degree == 2:
        q, k = poly_features(q), poly_features(k)
    queries, keys = chunks.cut(q), chunks.cut_with_overhang(k)
    scans = Scans.of(*(chunks.cut(x) for x in (gamma, eta, log_alpha, log_theta)))

    layers = layers_of(weights, chunks.batch)
    gated, shapes = is_gated(layers), [layer.shape[1:] for layer in layers]
    states = [torch.stack([w, torch.zeros_like(w)], 1).flatten(2) for w in layers]  # [G, 2, size]
    mix, push = last_rows(scans)
    entering, signals = [], []
    for n in range(chunks.count):
        memory = [s[:, 0].view(-1, *shape) for s, shape in zip(states, shapes, strict=True)]
        pairs = gradients(memory, keys[n], targets[n])
        entering.append(states)
        signals.append(pairs)
        if n + 1 < chunks.count:
            states = [
                write_both(state, mix[n], push[n], *pair)
                for state, pair in zip(states, pairs, strict=True)
            ]

    u, scans = queries.flatten(0, 1), scans.flatten()
    for layer, shape in enumerate(shapes):
        both = torch.cat([states[layer] for states in entering]).unflatten(2, shape)
        d = torch.cat([pairs[layer][0] for pairs in signals])
        if layer == 1:
            u = activate(u, gated)
            scores = torch.bmm(u, torch.cat([pairs[1][1] for pairs in signals]).mT)
        u = read(u, *both.unbind(1), scans, scores, d)
    out = chunks.join(u)
    return out + raw if residual else out
