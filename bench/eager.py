"""The opponents: the same algebra in plain PyTorch, written as carefully as PyTorch allows.

Everything is batched over heads; products that end in a sum are `baddbmm`; chunks are cut and made
contiguous once, outside the sequential loop; autograd makes the backward. The rules are those with
the l2 objective, a linear memory, decay and momentum; T must be a multiple of the chunk size.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor

MUON = (3.4445, -4.7750, 2.0315)


def newton_schulz(
    x: Tensor,  # [..., m, n]
    steps: int = 5,
    eps: float = 1e-7,
) -> Tensor:
    """The bmm loop: three products a step, sums folded into `baddbmm`. Returns [..., m, n]."""
    a, b, c = MUON
    flat = x.reshape(-1, *x.shape[-2:])
    if flat.shape[1] > flat.shape[2]:
        flat = flat.mT
    flat = flat / (torch.linalg.matrix_norm(flat, keepdim=True) + eps)
    for _ in range(steps):
        gram = torch.bmm(flat, flat.mT)
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        flat = torch.baddbmm(flat, poly, flat, beta=a)
    return (flat.mT if x.shape[-2] > x.shape[-1] else flat).reshape(x.shape)


@functools.cache
def _monomials(dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
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


def poly_features(x: Tensor) -> Tensor:  # [..., K] -> [..., D]
    """Degree 2 by index-gather: two gathers, two products, nothing concatenated at full size."""
    left, right, weight = _monomials(x.shape[-1], x.device)
    rows = x.reshape(-1, x.shape[-1])
    lifted = F.pad(rows, (1, 0), value=1.0)
    out = lifted.index_select(1, left) * lifted.index_select(1, right) * weight.to(x.dtype)
    return out.view(*x.shape[:-1], -1)


def _decay(log_decay: Tensor) -> tuple[Tensor, Tensor]:  # [G, C] -> [G, C], [G, C, C]
    """Cumulative decays inside a chunk, and the triangle of decays from token s to token t >= s."""
    total = log_decay.cumsum(-1)
    size = total.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool).triu(1)
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(future, -math.inf)
    return total.exp(), between.exp()


def _band(gamma: Tensor) -> Tensor:  # [G, C, W] -> [G, C, C + W - 1]
    """Gate of token t for key i at column t + W - 1 - j: a skewed copy, no scatter."""
    groups, size, window = gamma.shape
    padded = F.pad(gamma.flip(-1), (0, size))
    return padded.flatten(1)[:, : size * (size + window - 1)].view(groups, size, -1)


class _Chunks:
    """Cuts [B, T, H, X] into [chunks, B*H, C, X], with an overhang where asked for."""

    def __init__(self, size: int, window: int, like: Tensor) -> None:
        self.size, self.overhang = size, window - 1
        self.batch, self.length, self.heads = like.shape[:3]
        self.count = self.length // size
        if self.count * size != self.length:
            raise ValueError(f"eager: T: wanted a multiple of {size}, got {self.length}")

    def cut(self, x: Tensor) -> Tensor:
        x = x.reshape(self.batch, self.count, self.size, self.heads, *x.shape[3:])
        x = x.permute(1, 0, 3, 2, *range(4, x.dim()))  # [chunks, B, H, C, ...]
        return x.reshape(self.count, self.batch * self.heads, *x.shape[3:])

    def cut_with_overhang(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, self.overhang, 0))
        windows = x.unfold(1, self.size + self.overhang, self.size)  # [B, chunks, H, X, L]
        return windows.permute(1, 0, 2, 4, 3).reshape(
            self.count, self.batch * self.heads, -1, x.shape[-1]
        )

    def join(self, x: Tensor) -> Tensor:  # [chunks * B * H, C, V] -> [B, T, H, V]
        x = x.view(self.count, self.batch, self.heads, self.size, -1)
        return x.permute(1, 0, 3, 2, 4).reshape(self.batch, self.length, self.heads, -1)


def omega_rule_by_chunk(
    q: Tensor,  # [B, T, H, K]
    k: Tensor,  # [B, T, H, K]
    v: Tensor,  # [B, T, H, V]
    gamma: Tensor,  # [B, T, H, W]
    eta: Tensor,  # [B, T, H]
    log_alpha: Tensor,  # [B, T, H]
    log_theta: Tensor,  # [B, T, H]
    weights: Tensor,  # [H, V, D]
    *,
    degree: int | None = None,
    chunk_size: int = 64,
) -> Tensor:  # [B, T, H, V]
    """Dual form, one chunk after the other: what a careful author writes first."""
    chunks = _Chunks(chunk_size, gamma.shape[-1], q)
    raw_queries, raw_keys = chunks.cut(q), chunks.cut_with_overhang(k)
    queries, keys = raw_queries, raw_keys
    if degree == 2:
        queries, keys = chunks.cut(poly_features(q)), chunks.cut_with_overhang(poly_features(k))
    values, gamma = chunks.cut_with_overhang(v), chunks.cut(gamma)
    eta, log_alpha, log_theta = chunks.cut(eta), chunks.cut(log_alpha), chunks.cut(log_theta)

    memory = weights.expand(chunks.batch, *weights.shape).flatten(0, 1)
    momentum = torch.zeros_like(memory)
    outs = []
    for n in range(chunks.count):
        alpha, decay_alpha = _decay(log_alpha[n])
        theta, decay_theta = _decay(log_theta[n])
        gates = torch.bmm(decay_theta, _band(gamma[n]))  # [G, C, L]
        step = decay_alpha * eta[n].unsqueeze(1)
        coefficients = torch.bmm(step, gates)
        old = torch.bmm(step, theta.unsqueeze(-1))  # [G, C, 1]
        scores = torch.bmm(raw_queries[n], raw_keys[n].mT)
        if degree == 2:
            scores = 0.5 * scores.square() + scores + 1.0
        error = torch.baddbmm(values[n], keys[n], memory.mT, beta=-1)  # [G, L, V]
        own = alpha.unsqueeze(-1) * torch.bmm(queries[n], memory.mT)
        own = own - old * torch.bmm(queries[n], momentum.mT)
        outs.append(torch.baddbmm(own, coefficients * scores, error, alpha=-1))
        if n + 1 < chunks.count:
            kept = alpha[:, -1:, None] * memory - old[:, -1:] * momentum
            written = coefficients[:, -1:].mT * error
            memory = torch.baddbmm(kept, written.mT, keys[n], alpha=-1)
            written = gates[:, -1:].mT * error
            momentum = torch.baddbmm(theta[:, -1:, None] * momentum, written.mT, keys[n])
    return chunks.join(torch.cat(outs))


def omega_rule(
    q: Tensor,  # [B, T, H, K]
    k: Tensor,  # [B, T, H, K]
    v: Tensor,  # [B, T, H, V]
    gamma: Tensor,  # [B, T, H, W]
    eta: Tensor,  # [B, T, H]
    log_alpha: Tensor,  # [B, T, H]
    log_theta: Tensor,  # [B, T, H]
    weights: Tensor,  # [H, V, D]
    *,
    degree: int | None = None,
    chunk_size: int = 64,
) -> Tensor:  # [B, T, H, V]
    """Dual form, all state-free work batched over chunks; in the loop: error signals and the state.

    Faster than chunk by chunk, at the price of holding every chunk's scores, errors and states.
    """
    chunks = _Chunks(chunk_size, gamma.shape[-1], q)
    scores = torch.matmul(chunks.cut(q), chunks.cut_with_overhang(k).mT)  # [n, G, C, L]
    if degree == 2:
        scores = 0.5 * scores.square() + scores + 1.0
        q, k = poly_features(q), poly_features(k)
    queries, keys, values = chunks.cut(q), chunks.cut_with_overhang(k), chunks.cut_with_overhang(v)
    alpha, decay_alpha = _decay(chunks.cut(log_alpha).flatten(0, 1))
    theta, decay_theta = _decay(chunks.cut(log_theta).flatten(0, 1))
    gates = torch.bmm(decay_theta, _band(chunks.cut(gamma).flatten(0, 1)))  # [n*G, C, L]
    step = decay_alpha * chunks.cut(eta).flatten(0, 1).unsqueeze(1)
    coefficients = torch.bmm(step, gates)
    old = torch.bmm(step, theta.unsqueeze(-1)).squeeze(-1)  # [n*G, C]: weight of the entering S

    groups, count = scores.shape[1], chunks.count
    state = weights.expand(chunks.batch, *weights.shape).flatten(0, 1)
    value_dim = state.shape[1]
    state = torch.stack([state, torch.zeros_like(state)], 1).flatten(2)  # [G, 2, V*D]
    zero = torch.zeros_like(alpha[:, -1])
    last = torch.stack([alpha[:, -1], -old[:, -1], zero, theta[:, -1]], -1)
    mix = last.view(count, groups, 2, 2)
    push = torch.stack([-coefficients[:, -1], gates[:, -1]], 1).view(count, groups, 2, 1, -1)
    states, errors = [], []
    for n in range(count):
        states.append(state)
        memory = state[:, 0].view(groups, value_dim, -1)
        error = torch.baddbmm(values[n], keys[n], memory.mT, beta=-1)  # [G, L, V]
        errors.append(error)
        if n + 1 < count:
            written = (push[n] * error.mT.unsqueeze(1)).flatten(1, 2)  # [G, 2V, L]
            written = torch.bmm(written, keys[n]).view_as(state)
            state = torch.baddbmm(written, mix[n], state)
    both = torch.stack(states).view(count * groups, 2 * value_dim, -1)
    read = torch.bmm(queries.flatten(0, 1), both.mT)  # [n*G, C, 2V]
    own = alpha.unsqueeze(-1) * read[..., :value_dim] - old.unsqueeze(-1) * read[..., value_dim:]
    weighted = coefficients * scores.flatten(0, 1)
    out = torch.baddbmm(own, weighted, torch.stack(errors).flatten(0, 1), alpha=-1)
    return chunks.join(out)


def omega_rule_muon(
    q: Tensor,  # [B, T, H, K]
    k: Tensor,  # [B, T, H, K]
    v: Tensor,  # [B, T, H, V]
    gamma: Tensor,  # [B, T, H, W]
    eta: Tensor,  # [B, T, H]
    log_alpha: Tensor,  # [B, T, H]
    log_theta: Tensor,  # [B, T, H]
    weights: Tensor,  # [H, V, K]
    *,
    steps: int = 5,
    chunk_size: int = 64,
) -> Tensor:  # [B, T, H, V]
    """Newton-Schulz at every token: per chunk one product, one batched bmm loop, one scan."""
    chunks = _Chunks(chunk_size, gamma.shape[-1], q)
    queries, keys, values = chunks.cut(q), chunks.cut_with_overhang(k), chunks.cut_with_overhang(v)
    groups, count, width = keys.shape[1], chunks.count, k.shape[-1]
    alpha, decay_alpha = _decay(chunks.cut(log_alpha).flatten(0, 1))
    theta, decay_theta = _decay(chunks.cut(log_theta).flatten(0, 1))
    gates = torch.bmm(decay_theta, _band(chunks.cut(gamma).flatten(0, 1)))
    step = decay_alpha * chunks.cut(eta).flatten(0, 1).unsqueeze(1)
    gates, step = (
        gates.view(count, groups, chunk_size, -1),
        step.view(count, groups, chunk_size, -1),
    )
    alpha, theta = alpha.view(count, groups, chunk_size), theta.view(count, groups, chunk_size)

    memory = weights.expand(chunks.batch, *weights.shape).flatten(0, 1)
    value_dim = memory.shape[1]
    momentum = torch.zeros_like(memory).flatten(1)
    outs = []
    for n in range(count):
        error = torch.baddbmm(values[n], keys[n], memory.mT, beta=-1)  # [G, L, V]
        outer = (error.unsqueeze(-1) * keys[n].unsqueeze(-2)).flatten(2)  # [G, L, V*K]
        carried = theta[n].unsqueeze(-1) * momentum.unsqueeze(1)
        momenta = torch.baddbmm(carried, gates[n], outer)  # [G, C, V*K]
        written = newton_schulz(momenta.view(-1, value_dim, width), steps).view_as(momenta)
        moved = torch.bmm(step[n], written).view(-1, value_dim, width)  # [G*C, V, K]
        own = alpha[n].unsqueeze(-1) * torch.bmm(queries[n], memory.mT)
        back = torch.bmm(moved, queries[n].reshape(-1, width, 1)).view_as(own)
        outs.append(own - back)
        momentum = momenta[:, -1]
        moved_last = moved.view(groups, chunk_size, value_dim, width)[:, -1]
        memory = alpha[n, :, -1, None, None] * memory - moved_last
    return chunks.join(torch.cat(outs))
