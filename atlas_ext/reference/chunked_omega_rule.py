"""The Omega rule by chunks, in matrix products (docs/math/omega_rule.md, sections 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..state import OmegaState
from ._memory import Map, layer_gradients, linear_maps, read
from ._omega_inputs import Memory, Options, Tokens, concatenate, make_options
from ._omega_run import run
from .poly_features import default_scales


def chunked_omega_rule(
    q: Tensor,  # [B, T, H, K]
    k: Tensor,  # [B, T, H, K]
    v: Tensor,  # [B, T, H, V]
    gamma: Tensor,  # [B, T, H, W]
    eta: Tensor,  # [B, T, H]
    log_alpha: Tensor | None = None,  # [B, T, H]
    log_theta: Tensor | None = None,  # [B, T, H]
    *,
    weights: Sequence[Tensor] | None = None,  # each [H, out, in] or [N, H, out, in]
    objective: str = "l2",
    activation: str = "gelu",
    residual: bool = False,
    degree: int | None = None,
    feature_scales: Tensor | None = None,  # [degree+1]
    ns_steps: int = 0,
    ns_schedule: str | Tensor = "muon",
    ns_scale: str = "none",
    ns_every: int = 1,
    chunk_size: int = 64,
    initial_state: OmegaState | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,  # [N+1]
) -> tuple[Tensor, OmegaState | None]:  # o [B, T, H, V]
    """:func:`omega_rule`, same arguments and results, computed chunk by chunk.

    Nothing of size tokens × weights exists: a chunk's writes stay rank-one factors, and a read is
    a decayed read of the entering memory plus a masked attention over the chunk's error signals.
    With Newton-Schulz only the O_t of the chunk's writing tokens are formed. Errors as in
    omega_rule. Source: docs/math/omega_rule.md, sections 3 (dual form) and 4 (Newton-Schulz form).
    """
    op = "chunked_omega_rule"
    options = make_options(
        op,
        objective,
        activation,
        residual,
        degree,
        feature_scales,
        ns_steps,
        ns_schedule,
        ns_scale,
        ns_every,
        chunk_size,
    )
    return run(
        op,
        chunk_loop,
        q,
        k,
        v,
        gamma,
        eta,
        log_alpha,
        log_theta,
        weights,
        options,
        initial_state,
        output_final_state,
        cu_seqlens,
    )


def chunk_loop(
    tokens: Tokens,
    memory: Memory,
    options: Options,
) -> tuple[Tensor, Memory]:  # y [N, H, T, V]
    if not tokens.positions:
        return tokens.v[:, :, tokens.window - 1 :], memory
    period = options.chunk_size, options.ns_every if options.ns_rows else 1
    phases = {tuple(first % p for p in period) for first in tokens.positions}
    if len(phases) > 1:  # Chunks would start at different tokens: one sequence at a time.
        parts = []
        for n in range(len(tokens.positions)):
            one = slice(n, n + 1)
            part = tokens.select(one, 0, tokens.length)
            parts.append(chunk_loop(part, memory.select(one), options))
        return torch.cat([y for y, _ in parts]), concatenate([leaving for _, leaving in parts])

    outputs = [tokens.v[:, :, :0]]
    start = 0
    while start < tokens.length:
        position = tokens.positions[0] + start
        end = min(start + options.chunk_size - position % options.chunk_size, tokens.length)
        y, memory = _chunk(tokens.select(slice(None), start, end), memory, options)
        outputs.append(y)
        if (position + end - start) % options.chunk_size == 0:
            memory = Memory(memory.weights, memory.momentum, memory.weights)
        start = end
    return torch.cat(outputs, dim=2), memory


@dataclass(frozen=True)
class _Scans:
    """Coefficients of a chunk of n tokens over its R = W-1+n window rows (eqs. 12 and 13)."""

    a: Tensor  # [N, H, n, R] S_t = p_t S_hat + sum_i a[t, i] d_i x_iᵀ
    p: Tensor  # [N, H, n]
    steps: Tensor  # [N, H, n, n] L_alpha diag(eta): M_t = m_t M_hat - sum_s steps[t, s] O_s
    m: Tensor  # [N, H, n]


def _scans(tokens: Tokens) -> _Scans:
    n, window = tokens.length, tokens.window
    # The band matrix Gamma[t, t + s] = gamma[t, s] over the chunk's window rows.
    tokens_axis = torch.arange(n, device=tokens.q.device)[:, None]
    columns = tokens_axis + torch.arange(window, device=tokens.q.device)
    band = tokens.gamma.new_zeros(*tokens.gamma.shape[:-1], window - 1 + n)
    a = band.scatter(-1, columns.expand(tokens.gamma.shape), tokens.gamma)
    p = torch.zeros_like(tokens.eta)  # Without momentum theta = 0: S_t = G_t.
    if tokens.log_theta is not None:
        a = _decays(tokens.log_theta) @ a
        p = tokens.log_theta.cumsum(dim=-1).exp()
    steps = _decays(tokens.log_alpha) * tokens.eta[..., None, :]
    return _Scans(a, p, steps, tokens.log_alpha.cumsum(dim=-1).exp())


def _decays(log_decay: Tensor) -> Tensor:  # [N, H, n] -> [N, H, n, n]
    """L[t, s] = exp(sum_{s<r<=t} log_decay_r) for s <= t, else 0: no division by a decay."""
    n = log_decay.shape[-1]
    ones = torch.ones(n, n, dtype=torch.bool, device=log_decay.device)
    rows = log_decay[..., :, None].expand(*log_decay.shape, n)
    sums = rows.masked_fill(~ones.tril(-1), 0.0).cumsum(dim=-2)
    return sums.masked_fill(~ones.tril(), -torch.inf).exp()


@dataclass(frozen=True)
class _Layer:
    """One matrix of the memory over one chunk."""

    apply: Callable[[Tensor, Tensor | None], Tensor]  # x_t, scores -> W_t x_t [N, H, n, out]
    weight: Tensor  # [N, H, out, in] leaving
    momentum: Tensor  # [N, H, out, in] leaving


def _chunk(
    tokens: Tokens,
    memory: Memory,
    options: Options,
) -> tuple[Tensor, Memory]:  # y [N, H, n, V]
    x, u = options.lift(tokens.k), options.lift(tokens.q)
    gradients = layer_gradients(
        linear_maps(memory.reference),
        memory.reference[-1],
        x,
        options.raw(tokens.k),
        tokens.v,
        options.objective,
        options.activation,
    )
    scans = _scans(tokens)
    momentum = memory.momentum or tuple(torch.zeros_like(w) for w in memory.weights)
    writes = [t for t in range(tokens.length) if options.writes(tokens.positions[0] + t)]
    layers = []
    for w_hat, s_hat, (d, inputs) in zip(memory.weights, momentum, gradients, strict=True):
        if options.ns_rows:
            layers.append(_ns_layer(w_hat, s_hat, d, inputs, scans, writes, options))
        else:
            layers.append(_dual_layer(w_hat, s_hat, d, inputs, scans))
    # The first layer sees phi: its inner products come from the kernel, without features (eq. 17).
    scores = None if options.ns_rows else _kernel(tokens.q, tokens.k, options)
    first_layer = max(len(layers) - 1, 1)
    maps = [
        _bind(layer, scores if index < first_layer else None) for index, layer in enumerate(layers)
    ]
    y = read(maps, u, options.raw(tokens.q), options.activation)
    weights = tuple(layer.weight for layer in layers)
    leaving = None if memory.momentum is None else tuple(layer.momentum for layer in layers)
    return y, Memory(weights, leaving, memory.reference)


def _bind(layer: _Layer, scores: Tensor | None) -> Map:
    return lambda x: layer.apply(x, scores)


def _kernel(
    q: Tensor,  # [N, H, n, K]
    k: Tensor,  # [N, H, R, K]
    options: Options,
) -> Tensor:  # [N, H, n, R]
    """phi(q)·phi(k) = sum_l c_l² (q·k)^l."""
    dots = q @ k.mT
    if options.degree is None:
        return dots
    scales = options.feature_scales
    c = default_scales(options.degree, q) if scales is None else scales.to(q.dtype)
    kernel = torch.zeros_like(dots)
    for level in reversed(range(options.degree + 1)):  # Horner
        kernel = kernel * dots + c[level] ** 2
    return kernel


def _momenta(
    a: Tensor,  # [N, H, r, R] rows of the chosen tokens
    p: Tensor,  # [N, H, r]
    s_hat: Tensor,  # [N, H, out, in]
    d: Tensor,  # [N, H, R, out]
    inputs: Tensor,  # [N, H, R, in]
) -> Tensor:  # [N, H, r, out, in]
    """S_t of chosen tokens, eq. (12)."""
    written = (a[..., None] * d[:, :, None]).mT @ inputs[:, :, None]
    return p[..., None, None] * s_hat[:, :, None] + written


def _dual_layer(
    w_hat: Tensor,  # [N, H, out, in]
    s_hat: Tensor,  # [N, H, out, in]
    d: Tensor,  # [N, H, R, out]
    inputs: Tensor,  # [N, H, R, in]
    scans: _Scans,
) -> _Layer:
    """W_t = m_t W_hat - s_t S_hat - sum_i cf[t, i] d_i x_iᵀ, never formed (eqs. 14 to 16)."""
    cf = scans.steps @ scans.a  # [N, H, n, R]
    m, s = scans.m[..., None], scans.steps @ scans.p[..., None]  # [N, H, n, 1]

    def apply(x: Tensor, scores: Tensor | None) -> Tensor:
        scores = x @ inputs.mT if scores is None else scores
        return m * (x @ w_hat.mT) - s * (x @ s_hat.mT) - (cf * scores) @ d

    written = (cf[:, :, -1, :, None] * d).mT @ inputs
    weight = m[:, :, -1:] * w_hat - s[:, :, -1:] * s_hat - written
    momentum = _momenta(scans.a[:, :, -1:], scans.p[:, :, -1:], s_hat, d, inputs)
    return _Layer(apply, weight, momentum[:, :, 0])


def _ns_layer(
    w_hat: Tensor,  # [N, H, out, in]
    s_hat: Tensor,  # [N, H, out, in]
    d: Tensor,  # [N, H, R, out]
    inputs: Tensor,  # [N, H, R, in]
    scans: _Scans,
    writes: list[int],  # tokens of the chunk that write
    options: Options,
) -> _Layer:
    """W_t = m_t W_hat - sum_w steps[t, w] NS(S_w) over the writing tokens w (eqs. 18 and 19)."""
    o = options.orthogonalise(
        _momenta(scans.a[:, :, writes], scans.p[:, :, writes], s_hat, d, inputs)
    )  # [N, H, w, out, in]
    steps = scans.steps[..., writes]  # [N, H, n, w]
    m = scans.m[..., None]

    def apply(x: Tensor, scores: Tensor | None) -> Tensor:
        reads = x[:, :, None] @ o.mT  # [N, H, w, n, out]
        return m * (x @ w_hat.mT) - (steps.mT[..., None] * reads).sum(dim=2)

    weight = m[:, :, -1:] * w_hat - (steps[:, :, -1, :, None, None] * o).sum(dim=2)
    momentum = _momenta(scans.a[:, :, -1:], scans.p[:, :, -1:], s_hat, d, inputs)
    return _Layer(apply, weight, momentum[:, :, 0])
