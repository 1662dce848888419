"""The exponential Omega rule in plain PyTorch, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.eager.chunks import Chunks, Scans
from bench.eager.memory import gradients, layers_of
from bench.eager.rule import read, write


def exp_step(
    before: Tensor,  # [G, p, K] keys of earlier chunks
    rows: Tensor,  # [G, p, 2 R] their coefficients and momenta
    memory: tuple[Tensor, ...],  # () or W0, W2 and S of W2
    near: tuple[Tensor, Tensor, Tensor],  # queries; keys and targets, those of the window too
    gates: tuple[Tensor, ...],  # gamma [G, C, W], eta, log_alpha, log_theta [G, C]
    last: bool,  # nobody reads what the chunk leaves
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...]]:
    """What is read, [G, C, V]; keys, rows and memory after the chunk."""
    raw_queries, keys, targets = near
    size, width = raw_queries.shape[1], rows.shape[-1] // 2
    scale = keys.shape[-1] ** -0.5
    queries, held = raw_queries * scale, keys.shape[1] - size
    scans = _last_of(Scans.of(*gates), keys.shape[1])
    sums = torch.bmm(torch.bmm(scale * keys, before.mT).exp(), rows[..., :width])
    if memory:
        raw, weight, momentum = memory
        z = sums + torch.bmm(keys, raw.mT)
        hidden = F.gelu(z)
        ((error, _),) = gradients([weight], hidden, targets)
        d = torch.ops.aten.gelu_backward(torch.bmm(error, weight), z)
    else:
        d = sums - targets
    both = torch.bmm(torch.bmm(queries, before.mT).exp(), rows)
    alpha, old = scans.alpha.unsqueeze(-1), scans.old.unsqueeze(-1)
    own = alpha * both[..., :width] - old * both[..., width:]
    kernel = scans.coefficients * torch.bmm(queries, keys.mT).exp()
    u = torch.baddbmm(own, kernel, d, alpha=-1)
    if memory:
        h = F.gelu(u + alpha * torch.bmm(raw_queries, raw.mT))
        u = read(h, weight, momentum, scans, torch.bmm(h, hidden.mT), error)
        memory = (alpha[:, -1:] * raw, *write(weight, momentum, scans, error, hidden))
    if last:
        return u, before, rows, memory
    return u, torch.cat([before, keys[:, held:]], 1), _moved(rows, scans, d, width, size), memory


def exp_omega_rule(
    q: Tensor,  # [B, T, H, K]
    k: Tensor,  # [B, T, H, K]
    v: Tensor,  # [B, T, H, V]
    gamma: Tensor,  # [B, T, H, W]
    eta: Tensor,  # [B, T, H]
    log_alpha: Tensor,  # [B, T, H]
    log_theta: Tensor,  # [B, T, H]
    weights: tuple[Tensor, ...] = (),  # (): linear | (W0, W2) MLP, each [H, out, in]
    *,
    chunk_size: int = 64,
    step: Callable[..., Any] = exp_step,
) -> Tensor:  # [B, T, H, V]
    """The l2 objective with momentum and decay; two passes over all earlier keys for each chunk.

    Rows and momenta stand side by side, so that one product reads both. `step`: or compiled.
    """
    chunks = Chunks(chunk_size, gamma.shape[-1], q)
    queries, keys = chunks.cut(q), chunks.cut_with_overhang(k)
    targets = chunks.cut_with_overhang(v)
    gates = [chunks.cut(x) for x in (gamma, eta, log_alpha, log_theta)]
    memory = tuple(layers_of(weights, chunks.batch)) if weights else ()
    if memory:
        memory = (*memory, torch.zeros_like(memory[1]))
    before = keys[0, :, :0]  # [G, p, K]
    width = memory[0].shape[1] if memory else v.shape[-1]
    rows = q.new_zeros(keys.shape[1], 0, 2 * width)  # [G, p, 2 R]
    outs = []
    for n in range(chunks.count):
        # of the first chunk's overhang nothing exists
        reach = chunk_size + (chunks.overhang if n > 0 else 0)
        near = queries[n], keys[n, :, -reach:], targets[n, :, -reach:]
        u, before, rows, memory = step(
            before, rows, memory, near, tuple(gate[n] for gate in gates), n + 1 == chunks.count
        )
        outs.append(u)
    return chunks.join(torch.cat(outs))


def _last_of(scans: Scans, count: int) -> Scans:
    """The same scans of the last `count` window rows."""
    gates, coefficients = scans.gates[..., -count:], scans.coefficients[..., -count:]
    return Scans(scans.alpha, scans.theta, scans.step, gates, coefficients, scans.old)


def _moved(rows: Tensor, scans: Scans, d: Tensor, width: int, new: int) -> Tensor:
    """Rows and momenta after a chunk, its own tokens behind those before."""
    alpha, old, theta = (s[:, -1, None, None] for s in (scans.alpha, scans.old, scans.theta))
    b, s = rows[..., :width], rows[..., width:]
    moved = torch.cat([alpha * b - old * s, theta * s], -1)
    push = torch.stack([-scans.coefficients[:, -1], scans.gates[:, -1]], -1)  # [G, L, 2]
    pushed = (push.unsqueeze(-1) * d.unsqueeze(2)).flatten(2)
    kept = d.shape[1] - new
    tail = moved[:, moved.shape[1] - kept :] + pushed[:, :kept]
    return torch.cat([moved[:, : moved.shape[1] - kept], tail, pushed[:, kept:]], 1)
