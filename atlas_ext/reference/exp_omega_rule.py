"""The Omega rule with the exponential feature map (docs/math/exp_omega_rule.md)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..state import ExpOmegaState
from ._checks import check, check_choice, check_count
from ._exp_omega_run import ExpMemory, ExpOptions, run
from ._memory import ACTIVATIONS, OBJECTIVES, Map, Matrices, layer_gradients, read
from ._omega_inputs import Tokens

NORMALIZATIONS = ("none", "softmax", "rms")
RMS_EPS = 1e-6


def exp_omega_rule(
    q: Tensor,  # [B, T, H, K]
    k: Tensor,  # [B, T, H, K]
    v: Tensor,  # [B, T, H, V]
    gamma: Tensor,  # [B, T, H, W]
    eta: Tensor,  # [B, T, H]
    log_alpha: Tensor | None = None,  # [B, T, H]
    log_theta: Tensor | None = None,  # [B, T, H]
    *,
    weights: Sequence[Tensor] | None = None,  # (W0, W2) | (W0, W0g, W2)
    objective: str = "dot",
    activation: str = "gelu",
    residual: bool = False,
    normalize: str = "none",
    scale: float | None = None,
    chunk_size: int = 64,
    initial_state: ExpOmegaState | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,  # [N+1]
) -> tuple[Tensor, ExpOmegaState | None]:  # o [B, T, H, V]
    """The Omega rule where phi is the exponential map: phi(x)·phi(y) = exp(scale x·y), exactly.

    The matrices that see phi are held as one coefficient row for each past token, W phi(x) =
    sum_j b_j exp(scale k_j·x), and the rule acts on the rows. ``weights`` None is the linear
    memory; (W0, W2) and (W0, W0g, W2) are the MLP and the gated MLP, whose W0, W0g [H, F, K] map
    the raw input and only decay. ``normalize``: "softmax" divides the read's kernel sums by the
    sum of the kernel over all keys seen, "rms" divides the output by its root mean square.
    ``scale`` defaults to K**-0.5. ``initial_state`` is not changed. Dtypes and errors as in
    omega_rule. Source: arXiv 2505.23735, section 4; docs/math/exp_omega_rule.md.
    """
    op = "exp_omega_rule"
    check_choice(op, "objective", objective, OBJECTIVES)
    check_choice(op, "activation", activation, ACTIVATIONS)
    check_choice(op, "normalize", normalize, NORMALIZATIONS)
    check_count(op, "chunk_size", chunk_size, 1)
    number = scale is None or isinstance(scale, (int, float))
    check(number, op, "scale", "a number or None", type(scale).__name__)
    options = ExpOptions(objective, activation, residual, normalize, scale, chunk_size)
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
    tokens: Tokens,  # N sequences at one position
    memory: ExpMemory,
    options: ExpOptions,
) -> tuple[Tensor, ExpMemory]:  # y [N, H, T, V]
    scale = tokens.q.shape[-1] ** -0.5 if options.scale is None else options.scale
    keys, momentum = memory.keys, memory.momentum
    rows, weights = memory.rows, memory.weights
    reference_rows, reference_weights = memory.reference_rows, memory.reference_weights
    outputs = [tokens.v[:, :, :0]]
    for t in range(tokens.length):
        position = keys.shape[2]
        seen = min(tokens.window, position + 1)  # window tokens that exist
        window = slice(t + tokens.window - seen, t + tokens.window)
        gates = tokens.gamma[:, :, t, tokens.window - seen :, None]  # [N, H, w, 1]
        eta = tokens.eta[:, :, t, None, None]
        alpha = tokens.log_alpha[:, :, t, None, None].exp()

        # The new token's key, with coefficient 0 in every sum so far.
        keys = torch.cat([keys, tokens.k[:, :, window][:, :, -1:]], dim=2)
        rows, reference_rows = _one_more(rows), _one_more(reference_rows)

        # Section 2, eqs. (4) to (6): error signals of the window at M_ref, never normalised.
        x = tokens.k[:, :, window]
        layers = layer_gradients(
            _maps(keys, reference_rows, reference_weights, scale, False),
            reference_weights[-1] if reference_weights else None,
            x,
            x if options.residual else None,
            tokens.v[:, :, window],
            options.objective,
            options.activation,
        )
        # Eq. (7): d_i phi(k_i)ᵀ adds to row i of the coefficients; W2 has an ordinary gradient.
        step = tuple(_at_the_end(gates * d, position + 1) for d, _ in layers[: len(rows)])
        step += tuple((gates * d).mT @ inputs for d, inputs in layers[len(rows) :])
        if tokens.log_theta is not None and momentum is not None:  # eq. (8)
            theta = tokens.log_theta[:, :, t, None, None].exp()
            momentum = (*_one_more(momentum[: len(rows)]), *momentum[len(rows) :])
            step = momentum = tuple(theta * s + g for s, g in zip(momentum, step, strict=True))

        # Eq. (9): everything decays; the raw-input maps are never written.
        rows = tuple(alpha * b - eta * g for b, g in zip(rows, step, strict=False))
        if weights:
            written = alpha * weights[-1] - eta * step[-1]
            weights = (*(alpha * w for w in weights[:-1]), written)

        # Section 3: read after the write.
        u = tokens.q[:, :, t : t + 1]
        maps = _maps(keys, rows, weights, scale, options.normalize == "softmax")
        y = read(maps, u, u if options.residual else None, options.activation)
        if options.normalize == "rms":
            y = y / (y.square().mean(dim=-1, keepdim=True) + RMS_EPS).sqrt()
        outputs.append(y)
        if (position + 1) % options.chunk_size == 0:
            reference_rows, reference_weights = rows, weights
    leaving = ExpMemory(keys, rows, momentum, weights, reference_rows, reference_weights)
    return torch.cat(outputs, dim=2), leaving


def _maps(
    keys: Tensor,  # [N, H, p, K]
    rows: Matrices,  # each [N, H, p, R]
    weights: Matrices,
    scale: float,
    normalized: bool,
) -> list[Map]:
    """The memory's matrices as maps of the raw input (eqs. 1 to 3)."""

    def first(b: Tensor, raw: Tensor | None) -> Map:
        def apply(x: Tensor) -> Tensor:
            scores = scale * (x @ keys.mT)
            kernel = scores.softmax(dim=-1) if normalized else scores.exp()
            return kernel @ b if raw is None else kernel @ b + x @ raw.mT

        return apply

    if not weights:
        return [first(rows[0], None)]
    maps = [first(b, raw) for b, raw in zip(rows, weights[:-1], strict=True)]
    return [*maps, lambda x: x @ weights[-1].mT]


def _one_more(rows: Matrices) -> Matrices:
    return tuple(torch.nn.functional.pad(b, (0, 0, 0, 1)) for b in rows)


def _at_the_end(
    values: Tensor,  # [N, H, w, R]
    length: int,
) -> Tensor:  # [N, H, length, R]
    return torch.nn.functional.pad(values, (0, 0, length - values.shape[2], 0))
