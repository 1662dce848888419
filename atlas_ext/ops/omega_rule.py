"""The Omega rule over whole sequences (docs/math/omega_rule.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atlas_ext.ops._common import (
    allow_tf32,
    operators,
    register_autocast,
    register_autograd,
    register_backward_fake,
    register_fake,
    register_first_order,
    register_flops,
)
from atlas_ext.ops._list_autograd import ListAutograd, whole_grads
from atlas_ext.ops._omega_common import (
    check_matrices_type,
    check_state_type,
    chunk_count,
    degree_argument,
    features_of,
    matrices_for_each,
    memory_shapes,
    requires_grad,
    schedule_arguments,
    sequence_count,
    sums_dtype,
)
from atlas_ext.ops._omega_flops import chunk_flops
from atlas_ext.state import OmegaState

_INPUTS = 16  # tensor arguments of the schema: q to cu_seqlens
_AUTOGRAD = ListAutograd(
    inputs=_INPUTS,
    tensors={0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 10: 7, 11: 8, 13: 9},
    lists={7: 0, 8: 1, 9: 2},
)


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
    feature_scales: Tensor | None = None,  # [degree + 1]
    ns_steps: int = 0,
    ns_schedule: str | Tensor = "muon",
    ns_scale: str = "none",
    ns_every: int = 1,
    chunk_size: int = 64,
    initial_state: OmegaState | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,  # [N + 1]
) -> tuple[Tensor, OmegaState | None]:
    """Let a memory learn its context with the Omega rule and read it after every token.

    At token t, with gradients at M_ref, the memory at the start of t's chunk::

        S_t = theta_t S_{t-1} + sum_{j<W} gamma[t, j] grad l(M_ref; k_{t-j}, v_{t-j})
        M_t = alpha_t M_{t-1} - eta_t O_t       O_t = S_t, or NS(S_t) where ns_steps > 0
        y_t = M_t(phi(q_t))

    Args:
        q, k: `[B, T, H, K]`; v: `[B, T, H, V]`; one dtype: float32, bfloat16, float16 or float64.
        gamma: `[B, T, H, W]`, gates of token t for the tokens t, t-1, ..., t-W+1.
        eta, log_alpha, log_theta: `[B, T, H]`; step size, log of the retention (None: 1), log of
            the momentum's decay (None: no momentum). Gates are float32 or of q's dtype.
        weights: the learned M_0, each matrix with H or N, H in front: `(W,)` of a linear memory,
            `[V, D]`; `(W1, W2)` of an MLP, `[F, D]` and `[V, F]`; `(W1, W3, W2)` of a gated MLP,
            `[F, D]` twice and `[V, F]`. M(x) is W x, W2 act(W1 x) or W2 (act(W1 x) * (W3 x)).
        objective: "l2", 1/2 ||M(phi(k)) - v||^2, or "dot", -<M(phi(k)), v>.
        activation: act of the deep memories, "gelu" (erf), "silu" or "identity".
        residual: add the raw k (q) to the memory's output; needs K = V.
        degree: None for phi = identity (D = K), 1 to 4 for the polynomial map (`poly_features`).
        feature_scales: `[degree + 1]`, the polynomial map's c_l.
        ns_steps, ns_schedule, ns_scale, ns_every: Newton-Schulz inside the rule (`newton_schulz`);
            with ns_steps > 0 the memory is written at positions p with p mod ns_every = ns_every-1.
        chunk_size: C; part of the model. 1 is the exact recurrence.
        initial_state: takes the place of `weights`.
        output_final_state: also return the state after the last token.
        cu_seqlens: `[N + 1]`, int32 or int64, bounds of packed sequences; B is then 1.
            On CUDA their values are not read by the host: bounds are clamped to [0, T], and what
            they leave out of [0, T] is undefined in the results.

    Returns:
        (o, final_state): `[B, T, H, V]` in q's dtype, and an `OmegaState` or None. Sums and states
        are float32 (float64 for float64). Differentiable once with respect to every floating-point
        tensor, initial_state's included, and from every floating-point output.

    Raises:
        ValueError, RuntimeError: naming the argument, what was wanted and what came.

    Source: arXiv 2505.23735, equations 9 to 11, 32 and 33; docs/math/omega_rule.md.
    """
    table, schedule = schedule_arguments(ns_schedule)
    state = _state_arguments(q, weights, initial_state, cu_seqlens)
    inputs = (q, k, v, gamma, eta, log_alpha, log_theta, *state, feature_scales, table, cu_seqlens)
    o, w, s, ref, k_tail, v_tail, position, _ = operators().omega_rule(
        *inputs,
        *(objective, activation, residual, degree_argument("omega_rule", degree)),
        *(ns_steps, schedule, ns_scale, ns_every, chunk_size, output_final_state),
        torch.is_grad_enabled() and requires_grad(inputs),
        allow_tf32(),
    )
    if not output_final_state:
        return o, None
    momentum = None if log_theta is None else tuple(s)
    return o, OmegaState(tuple(w), momentum, tuple(ref), k_tail, v_tail, position)


def _state_arguments(
    q: Tensor,
    weights: Sequence[Tensor] | None,
    state: OmegaState | None,
    cu_seqlens: Tensor | None,
) -> tuple[Any, ...]:
    """weights, momentum, chunk_weights, k_tail, v_tail, position as the operator takes them."""
    if state is not None:
        check_state_type("omega_rule", "initial_state", state)
        momentum = [] if state.momentum is None else list(state.momentum)
        tensors = (list(state.weights), momentum, list(state.chunk_weights))
        return (*tensors, state.k_tail, state.v_tail, state.position)
    if weights is None:
        raise ValueError("omega_rule: weights: wanted weights or an initial_state, got neither")
    check_matrices_type("omega_rule", "weights", weights)
    return matrices_for_each(weights, q, cu_seqlens), [], [], None, None, None


def _fake(*args: Any) -> tuple[Any, ...]:
    q, _, v, gamma = args[:4]
    log_theta, weights, k_tail, v_tail, position, cu_seqlens = (
        args[i] for i in (6, 7, 10, 11, 12, 15)
    )
    degree, chunk_size, final, save = (args[i] for i in (19, 24, 25, 26))
    batch, tokens, heads, key = q.shape
    value, window = v.shape[-1], gamma.shape[-1]
    matrices = memory_shapes([w.shape for w in weights], value, features_of(key, degree))
    n = sequence_count(q, cu_seqlens)

    def state(present: bool) -> list[Tensor]:
        shapes = [(n, heads, *matrix) for matrix in matrices if present]
        return [q.new_empty(shape, dtype=sums_dtype(q)) for shape in shapes]

    def tail(given: Tensor | None, width: int) -> Any:
        dtype = q.dtype if given is None else given.dtype
        return q.new_empty((n, window - 1, heads, width) if final else 0, dtype=dtype)

    count = chunk_count(q, position, cu_seqlens, chunk_size)
    return (
        v.new_empty((batch, tokens, heads, value)),
        state(final),
        state(final and log_theta is not None),
        state(final),
        tail(k_tail if final else None, key),
        tail(v_tail if final else None, value),
        q.new_empty(n if final else 0, dtype=torch.int64),
        [
            q.new_empty((count, heads, columns, rows), dtype=sums_dtype(q))
            for _ in range(0 if not save else 1 if log_theta is None else 2)
            for rows, columns in matrices
        ],
    )


def _backward_fake(*args: Any) -> tuple[list[Tensor], ...]:
    return _AUTOGRAD.fake_grads(args[7:], args[33])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _AUTOGRAD.save(ctx, inputs, output[7])
    *ctx.options, _save, ctx.tf32 = inputs[_INPUTS:]


def _backward(operators: Any, ctx: Any, *grads: Any) -> tuple[Any, ...]:
    inputs, saved = _AUTOGRAD.restore(ctx)
    grad_o, *lists, grad_k_tail, grad_v_tail, _, _ = grads
    q, shapes = inputs[0], [matrix.shape for matrix in inputs[7]]
    tensors, *found = operators.omega_rule_backward(
        grad_o,
        *(whole_grads(x, shapes, q, sums_dtype(q)) for x in lists),
        *(grad_k_tail, grad_v_tail, saved, *inputs, *ctx.options),
        *(_AUTOGRAD.mask(ctx.needs_input_grad), ctx.tf32),
    )
    return _AUTOGRAD.scatter(ctx, tensors, found)


register_fake("omega_rule")(_fake)
register_backward_fake("omega_rule_backward", _backward_fake)
register_autograd("omega_rule", _backward, _setup_context)
register_first_order("omega_rule_backward")
register_autocast("omega_rule", ("q", "k", "v"))
register_autocast("omega_rule_backward", ())


def _flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return chunk_flops(args[:_INPUTS], args[_INPUTS:], backward=False)


def _backward_flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return chunk_flops(args[7 : 7 + _INPUTS], args[7 + _INPUTS :], backward=True)


register_flops("omega_rule", _flops)
register_flops("omega_rule_backward", _backward_flops)
