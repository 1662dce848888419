"""The Omega rule, token by token (docs/math/omega_rule.md, sections 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..state import OmegaState
from ._memory import Matrices, layer_gradients, linear_maps, read
from ._omega_inputs import Memory, Options, Tokens, make_options
from ._omega_run import run


def omega_rule(
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
    """A memory that learns at test time from a gated window of tokens: the definition.

    At token t, with gradients taken at the memory M_ref of the chunk's start::

        G_t = sum_{j<W} gamma[t, j] grad l(M_ref; k_{t-j}, v_{t-j})
        S_t = theta_t S_{t-1} + G_t
        M_t = alpha_t M_{t-1} - eta_t O_t       O_t = S_t, or NS(S_t) where ns_steps > 0
        y_t = M_t(phi(q_t))

    The memory is linear, an MLP or a gated MLP, by the number of ``weights``. Arithmetic is in
    float32 (float64 for float64), o in q's dtype, states in the arithmetic's dtype.
    ``initial_state`` takes the place of ``weights``; the second result is None unless
    ``output_final_state``. Raises ValueError for anything malformed.
    Source: arXiv 2505.23735, eqs. 9 to 11, 32 and 33; docs/math/omega_rule.md, section 1.
    """
    op = "omega_rule"
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
        token_loop,
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


def token_loop(
    tokens: Tokens,
    memory: Memory,
    options: Options,
) -> tuple[Tensor, Memory]:  # y [N, H, T, V]
    weights, momentum, reference = memory.weights, memory.momentum, memory.reference
    x = options.lift(tokens.k)  # [N, H, W-1+T, D]
    u = options.lift(tokens.q)  # [N, H, T, D]
    outputs = [tokens.v[:, :, :0]]
    for t in range(tokens.length):
        window = slice(t, t + tokens.window)
        positions = [first + t for first in tokens.positions]
        gates = tokens.gamma[:, :, t, :, None]  # [N, H, W, 1]
        eta = tokens.eta[:, :, t, None, None]  # [N, H, 1, 1]
        alpha = tokens.log_alpha[:, :, t, None, None].exp()

        # Eq. (7): every gradient of the window at M_ref, gated by the current token.
        layers = layer_gradients(
            linear_maps(reference),
            reference[-1],
            x[:, :, window],
            options.raw(tokens.k[:, :, window]),
            tokens.v[:, :, window],
            options.objective,
            options.activation,
        )
        step = tuple((gates * d).mT @ inputs for d, inputs in layers)
        if tokens.log_theta is not None and momentum is not None:  # eq. (8)
            theta = tokens.log_theta[:, :, t, None, None].exp()
            step = momentum = tuple(theta * s + g for s, g in zip(momentum, step, strict=True))

        # Eqs. (9) and (10): orthogonalise where this token writes, decay, descend.
        step = _direction(step, positions, options)
        weights = tuple(alpha * w - eta * o for w, o in zip(weights, step, strict=True))

        # Eq. (11): read after the write.
        query = slice(t, t + 1)
        raw = options.raw(tokens.q[:, :, query])
        outputs.append(read(linear_maps(weights), u[:, :, query], raw, options.activation))

        # Where this token closes its chunk, the memory just written is the next reference.
        closed = [(position + 1) % options.chunk_size == 0 for position in positions]
        reference = tuple(_where(closed, w, old) for w, old in zip(weights, reference, strict=True))
    return torch.cat(outputs, dim=2), Memory(weights, momentum, reference)


def _direction(step: Matrices, positions: list[int], options: Options) -> Matrices:
    """O_t: S_t, or its orthogonalised form at writing tokens and zero elsewhere."""
    if not options.ns_rows:
        return step
    writes = [options.writes(position) for position in positions]
    if not any(writes):
        return tuple(torch.zeros_like(s) for s in step)
    return tuple(_where(writes, options.orthogonalise(s), torch.zeros_like(s)) for s in step)


def _where(chosen: list[bool], yes: Tensor, no: Tensor) -> Tensor:
    """Per sequence, the one or the other [N, H, out, in]."""
    if all(chosen):
        return yes
    if not any(chosen):
        return no
    mask = torch.tensor(chosen, device=yes.device)
    return torch.where(mask[:, None, None, None], yes, no)
