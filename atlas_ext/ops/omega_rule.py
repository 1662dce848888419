"""The Omega rule over whole sequences (docs/math/omega_rule.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atlas_ext.ops._common import (
    allow_tf32,
    grad_mask,
    operators,
    register_autocast,
    register_autograd,
    register_backward_fake,
    register_fake,
    register_first_order,
    register_flops,
)
from atlas_ext.ops._omega_common import (
    check_matrices_type,
    check_state_type,
    degree_argument,
    features_of,
    memory_shapes,
    requires_grad,
    schedule_arguments,
)
from atlas_ext.ops._omega_flops import chunk_flops
from atlas_ext.state import OmegaState

_INPUTS = 16  # tensor arguments of the schema: q to cu_seqlens
# Gradients of omega_rule_backward: an input's position to its place in `grads`, or to its list.
_TENSOR_GRADS = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 10: 7, 11: 8, 13: 9}
_LIST_GRADS = {7: 1, 8: 2, 9: 3}
_DIFFERENTIABLE = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13)


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
    sequences = q.shape[0] if q.dim() > 0 else 0
    if cu_seqlens is not None:
        sequences = cu_seqlens.numel() - 1
    # One M_0 for all sequences: expanded without a copy, and autograd sums its gradient.
    matrices = [
        w.unsqueeze(0).expand(sequences, -1, -1, -1) if w.dim() == 3 else w for w in weights
    ]
    return matrices, [], [], None, None, None


def _sums(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _sequences(q: Tensor, cu_seqlens: Tensor | None) -> int:
    return q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _checkpoints(q: Tensor, position: Tensor | None, cu_seqlens: Tensor | None, chunk: int) -> int:
    """An upper bound of the number of chunks that follows from shapes alone."""
    tokens, extra = q.shape[1], 0 if position is None else 1
    # No int(): it would turn a symbolic size into a constant, one compilation per length.
    if cu_seqlens is None:
        count: int = q.shape[0] * ((tokens + chunk - 1) // chunk + extra)
    else:
        count = tokens // chunk + _sequences(q, cu_seqlens) * (1 + extra)
    return count


def _fake(*args: Any) -> tuple[Any, ...]:
    q, _, v, gamma = args[:4]
    log_theta, weights, k_tail, v_tail, position, cu_seqlens = (
        args[i] for i in (6, 7, 10, 11, 12, 15)
    )
    degree, chunk_size, final, save = (args[i] for i in (19, 24, 25, 26))
    batch, tokens, heads, key = q.shape
    value, window = v.shape[-1], gamma.shape[-1]
    matrices = memory_shapes([w.shape for w in weights], value, features_of(key, degree))
    n = _sequences(q, cu_seqlens)

    def state(present: bool) -> list[Tensor]:
        shapes = [(n, heads, *matrix) for matrix in matrices if present]
        return [q.new_empty(shape, dtype=_sums(q)) for shape in shapes]

    def tail(given: Tensor | None, width: int) -> Any:
        dtype = q.dtype if given is None else given.dtype
        return q.new_empty((n, window - 1, heads, width) if final else 0, dtype=dtype)

    count = _checkpoints(q, position, cu_seqlens, chunk_size)
    return (
        v.new_empty((batch, tokens, heads, value)),
        state(final),
        state(final and log_theta is not None),
        state(final),
        tail(k_tail if final else None, key),
        tail(v_tail if final else None, value),
        q.new_empty(n if final else 0, dtype=torch.int64),
        [
            q.new_empty((count, heads, columns, rows), dtype=_sums(q))
            for _ in range(0 if not save else 1 if log_theta is None else 2)
            for rows, columns in matrices
        ],
    )


def _backward_fake(*args: Any) -> tuple[list[Tensor], ...]:
    inputs, mask = args[7:23], args[33]

    def like(tensor: Tensor) -> Tensor:
        return tensor.new_empty(tensor.shape)

    grads = [inputs[0].new_empty(0) for _ in _TENSOR_GRADS]  # outputs must not alias
    lists: list[list[Tensor]] = [[], [], []]
    for bit, index in enumerate(_DIFFERENTIABLE):
        value = inputs[index]
        if not mask >> bit & 1 or value is None:
            continue
        if index in _LIST_GRADS:
            lists[_LIST_GRADS[index] - 1] = [like(tensor) for tensor in value]
        else:
            grads[_TENSOR_GRADS[index]] = like(value)
    return (grads, *lists)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    ctx.counts = [len(x) if isinstance(x, list | tuple) else None for x in inputs[:_INPUTS]]
    flat = [y for x in inputs[:_INPUTS] for y in (x if isinstance(x, list | tuple) else (x,))]
    ctx.save_for_backward(*flat, *output[7])
    *ctx.options, _save, ctx.tf32 = inputs[_INPUTS:]
    ctx.set_materialize_grads(False)


def _backward(operators: Any, ctx: Any, *grads: Any) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    inputs: list[Any] = []
    for count in ctx.counts:
        inputs.append(saved.pop(0) if count is None else [saved.pop(0) for _ in range(count)])
    grad_o, grad_w, grad_s, grad_ref, grad_k_tail, grad_v_tail, _, _ = grads
    needed = ctx.needs_input_grad
    mask = grad_mask([_any(needed[i]) for i in _DIFFERENTIABLE])
    tensors, *lists = operators.omega_rule_backward(
        grad_o,
        *(_matrices(x, inputs[7], _sums(inputs[0])) for x in (grad_w, grad_s, grad_ref)),
        *(grad_k_tail, grad_v_tail, saved, *inputs, *ctx.options, mask, ctx.tf32),
    )
    result: list[Any] = [None] * (_INPUTS + len(ctx.options) + 2)
    for index, position in _TENSOR_GRADS.items():
        if needed[index]:
            result[index] = tensors[position]
    for index, position in _LIST_GRADS.items():
        count = ctx.counts[index]
        found = lists[position - 1]
        result[index] = list(found) if found else [None] * count
    return tuple(result)


def _any(needed: Any) -> bool:
    return any(needed) if isinstance(needed, list | tuple) else bool(needed)


def _matrices(grads: Any, weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The list's gradients, zeros for matrices without one; empty where nothing came back."""
    if all(grad is None for grad in grads or []):
        return []
    pairs = zip(grads, weights, strict=True)
    return [w.new_zeros(w.shape, dtype=dtype) if g is None else g for g, w in pairs]


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
