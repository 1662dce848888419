"""The exponential Omega rule in plain PyTorch, chunk by chunk."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.eager.chunks import Chunks, Scans
from bench.eager.memory import gradients, layers_of
from bench.eager.rule import read, write


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
) -> Tensor:  # [B, T, H, V]
    """The l2 objective with momentum and decay; two passes over all earlier keys for each chunk.

    Rows and momenta stand side by side, so that one product reads both.
    """
    chunks = Chunks(chunk_size, gamma.shape[-1], q)
    queries, keys = chunks.cut(q * q.shape[-1] ** -0.5), chunks.cut_with_overhang(k)
    scaled, targets = keys * q.shape[-1] ** -0.5, chunks.cut_with_overhang(v)
    gates = [chunks.cut(x) for x in (gamma, eta, log_alpha, log_theta)]
    raw, last = layers_of(weights, chunks.batch) if weights else (None, None)
    raw_queries = chunks.cut(q) if weights else None
    moment = None if last is None else torch.zeros_like(last)
    before = keys[0, :, :0]  # [G, p, K]
    width = v.shape[-1] if raw is None else raw.shape[1]
    rows = q.new_zeros(keys.shape[1], 0, 2 * width)  # [G, p, 2 R]
    outs = []
    for n in range(chunks.count):
        scans = Scans.of(*(gate[n] for gate in gates))
        held = chunks.overhang if n > 0 else 0  # of the first chunk's overhang nothing exists
        near, coefficients = keys[n, :, -held - chunk_size :], scans.coefficients
        coefficients = coefficients[..., -held - chunk_size :]
        target = targets[n, :, -held - chunk_size :]
        b = rows[..., :width]
        sums = torch.bmm(torch.bmm(scaled[n, :, -held - chunk_size :], before.mT).exp(), b)
        if raw is None or last is None or moment is None or raw_queries is None:
            d = sums - target
        else:
            z = sums + torch.bmm(near, raw.mT)
            hidden = F.gelu(z)
            ((error, _),) = gradients([last], hidden, target)
            d = torch.ops.aten.gelu_backward(torch.bmm(error, last), z)
        both = torch.bmm(torch.bmm(queries[n], before.mT).exp(), rows)
        alpha, old = scans.alpha.unsqueeze(-1), scans.old.unsqueeze(-1)
        own = alpha * both[..., :width] - old * both[..., width:]
        kernel = coefficients * torch.bmm(queries[n], near.mT).exp()
        u = torch.baddbmm(own, kernel, d, alpha=-1)
        mine = _last_of(scans, held + chunk_size)
        if raw is not None and last is not None and moment is not None and raw_queries is not None:
            h = F.gelu(u + alpha * torch.bmm(raw_queries[n], raw.mT))
            u = read(h, last, moment, mine, torch.bmm(h, hidden.mT), error)
            last, moment = write(last, moment, mine, error, hidden)
            raw = alpha[:, -1:] * raw
        outs.append(u)
        if n + 1 < chunks.count:
            before = torch.cat([before, near[:, held:]], 1)
            rows = _moved(rows, mine, d, width, chunk_size)
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
