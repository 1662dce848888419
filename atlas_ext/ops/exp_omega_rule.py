"""The Omega rule with the exponential feature map (docs/math/exp_omega_rule.md)."""

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
from atlas_ext.ops._exp_omega_common import (
    check_exp_state_type,
    pass_flops,
    row_sets,
    row_width,
    scale_argument,
    state_lists,
)
from atlas_ext.ops._list_autograd import ListAutograd, whole_grads
from atlas_ext.ops._omega_common import (
    check_matrices_type,
    chunk_count,
    matrices_for_each,
    requires_grad,
    sequence_count,
    sums_dtype,
)
from atlas_ext.state import ExpOmegaState, is_capturing

_INPUTS = 16  # tensor arguments of the schema: q to cu_seqlens
_AUTOGRAD = ListAutograd(
    inputs=_INPUTS,
    tensors={0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 8: 7, 12: 8, 13: 9},
    lists={7: 0, 9: 1, 10: 2, 11: 3},
)


def exp_omega_rule(
    q: Tensor,  # [B, T, H, K]
    k: Tensor,  # [B, T, H, K]
    v: Tensor,  # [B, T, H, V]
    gamma: Tensor,  # [B, T, H, W]
    eta: Tensor,  # [B, T, H]
    log_alpha: Tensor | None = None,  # [B, T, H]
    log_theta: Tensor | None = None,  # [B, T, H]
    *,
    weights: Sequence[Tensor] | None = None,  # each [H, out, in] or [N, H, out, in]
    objective: str = "dot",
    activation: str = "gelu",
    residual: bool = False,
    normalize: str = "none",
    scale: float | None = None,
    chunk_size: int = 64,
    initial_state: ExpOmegaState | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,  # [N + 1]
) -> tuple[Tensor, ExpOmegaState | None]:
    """Let a memory over the exponential map learn its context, and read it after every token.

    The map is infinitely wide, phi(x)·phi(y) = exp(scale x·y), and computed exactly: matrices that
    see it are held as one coefficient row for each past token, W phi(x) =
    sum_j b_j exp(scale k_j·x), and the Omega rule acts on the rows. Cost and state grow with the
    context as attention's do.

    Args:
        q, k: `[B, T, H, K]`; v: `[B, T, H, V]`; one dtype: float32, bfloat16, float16 or float64.
        gamma, eta, log_alpha, log_theta: gates, as `omega_rule` has them.
        weights: None: a linear memory, which starts at 0; `(W0, W2)`: an MLP, `(W0, W0g, W2)`: a
            gated one, with maps W0, W0g `[H, F, K]` of the raw input, which decay and are never
            written, and W2 `[H, V, F]`, an ordinary matrix under the rule.
        objective, activation, residual, chunk_size: as `omega_rule` has them.
        normalize: "none"; "softmax" divides the read's kernel sums by the sum of the kernel over
            all keys seen, whatever their decay; "rms" divides the output by its root mean square.
        scale: of the products inside exp; None: K^(-1/2).
        initial_state: takes the place of `weights`; it is not changed.
        output_final_state: also return the state after the last token. It has room for the longest
            sequence. With cu_seqlens on CUDA that waits for the device, which alone knows; compiled
            code and a captured CUDA graph, which cannot, take T for that.
        cu_seqlens: `[N + 1]`, int32 or int64, bounds of packed sequences; B is then 1.

    Returns:
        (o, final_state): `[B, T, H, V]` in q's dtype, and an `ExpOmegaState` or None. Sums and
        states are float32 (float64 for float64). Differentiable once with respect to every
        floating-point tensor, initial_state's included, and from every floating-point output.
        On CUDA a sequence whose position is negative or beyond a state's room gets NaN, and -1 as
        its final position; on the CPU that raises.

    Raises:
        ValueError, RuntimeError: naming the argument, what was wanted and what came.

    Source: arXiv 2505.23735, section 4; docs/math/exp_omega_rule.md.
    """
    op = "exp_omega_rule"
    number = scale_argument(op, scale, q.shape[-1] if q.dim() else 1)
    state = _state_arguments(op, q, weights, initial_state, cu_seqlens)
    inputs = (q, k, v, gamma, eta, log_alpha, log_theta, *state, cu_seqlens)
    extra = _extra_rows(q, initial_state, cu_seqlens) if output_final_state else None
    o, keys, rows, momentum, matrices, ref, k_tail, v_tail, position, _ = (
        operators().exp_omega_rule(
            *inputs,
            *(objective, activation, residual, normalize, number, chunk_size, extra),
            torch.is_grad_enabled() and requires_grad(inputs),
            allow_tf32(),
        )
    )
    if extra is None:
        return o, None
    final = ExpOmegaState(
        keys,
        tuple(rows),
        None if log_theta is None else tuple(momentum),
        tuple(matrices),
        tuple(ref),
        k_tail,
        v_tail,
        position,
        q.shape[1] + extra,
    )
    return o, final


def _state_arguments(
    op: str,
    q: Tensor,
    weights: Sequence[Tensor] | None,
    state: ExpOmegaState | None,
    cu_seqlens: Tensor | None,
) -> tuple[Any, ...]:
    """weights to position as the operator takes them."""
    if state is not None:
        check_exp_state_type(op, "initial_state", state)
        if weights is not None:
            raise ValueError(
                f"{op}: weights: wanted None where initial_state is given, got weights"
            )
        return state_lists(state)
    given = () if weights is None else weights
    check_matrices_type(op, "weights", given)
    matrices = matrices_for_each(given, q, cu_seqlens)
    return matrices, None, [], [], [], None, None, None


def _extra_rows(q: Tensor, state: ExpOmegaState | None, cu_seqlens: Tensor | None) -> int:
    """How many tokens more than T the longest sequence has after the call; negative where packed.

    Packed sequences are as long as their bounds say, which traced and captured code cannot read:
    there it is an upper bound. A number, and no sum with T, so that traced code serves all T.
    """
    before = 0 if state is None else state.length
    if cu_seqlens is None or torch.compiler.is_compiling() or is_capturing():
        return before
    if cu_seqlens.dim() != 1 or cu_seqlens.is_meta or q.dim() < 2:
        return before  # no values, or refused by the operator
    lengths = cu_seqlens.clamp(0, q.shape[1]).diff()  # wrong bounds must not ask for all memory
    if state is not None and state.position.shape == lengths.shape:
        lengths = lengths + state.position.clamp(0, state.capacity)
    longest: int = max([0, *lengths.tolist()])
    return longest - int(q.shape[1])


def _smaller(a: Any, b: Any) -> Any:
    """min() would decide between symbolic sizes, which costs a compilation for either answer."""
    return torch.sym_min(a, b)  # type: ignore[no-untyped-call]


def _saved_shapes(args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Of the tensors that the backward needs again; (0,) where one is not needed."""
    q, _, v, gamma = args[:4]
    momentum, weights, position, cu_seqlens = args[6] is not None, args[7], args[14], args[15]
    objective, normalize, chunk = args[16], args[19], args[21]
    sets, row = row_sets(weights), row_width(weights, v.shape[-1])
    lead = (chunk_count(q, position, cu_seqlens, chunk), q.shape[2])
    window_rows = _smaller(chunk, q.shape[1]) + gamma.shape[-1] - 1
    matrix = (*lead, row, v.shape[-1])
    wanted: list[tuple[bool, tuple[Any, ...]]] = [
        (True, (*lead, window_rows, 2 * sets if momentum else sets, row)),
        (objective == "l2" or bool(weights), (*lead, window_rows, sets, row)),
        (normalize != "none" or bool(weights), (*q.shape[:3], sets, row)),
        (normalize == "softmax", q.shape[:3]),
        (bool(weights), matrix),
        (bool(weights) and momentum, matrix),
    ]
    return [shape if present else (0,) for present, shape in wanted]


def _fake(*args: Any) -> tuple[Any, ...]:
    q, _, v, gamma = args[:4]
    log_theta, weights, keys, k_tail, v_tail, cu_seqlens = (args[i] for i in (6, 7, 8, 12, 13, 15))
    extra, save = args[22:24]
    heads, key, value = q.shape[2], q.shape[3], v.shape[-1]
    n, final, sums = sequence_count(q, cu_seqlens), extra is not None, sums_dtype(q)
    capacity = q.shape[1] + extra if final else None
    row, deep = row_width(weights, value), bool(weights)

    def rows(present: bool) -> list[Tensor]:
        shape = (n, capacity, heads, row)
        return [q.new_empty(shape, dtype=sums) for _ in range(row_sets(weights) if present else 0)]

    def matrices(present: bool) -> list[Tensor]:
        shapes = [(n, heads, *w.shape[2:]) for w in weights if present]
        return [q.new_empty(shape, dtype=sums) for shape in shapes]

    def given(tensor: Tensor | None, *shape: Any) -> Tensor:
        dtype = q.dtype if tensor is None or not final else tensor.dtype
        result: Tensor = q.new_empty(shape if final else (0,), dtype=dtype)
        return result

    with_momentum = final and log_theta is not None
    return (
        v.new_empty((*q.shape[:3], value)),
        given(keys, n, capacity, heads, key),
        rows(final),
        rows(with_momentum) + matrices(with_momentum and deep)[-1:],
        matrices(final),
        rows(final) + matrices(final),
        given(k_tail, n, gamma.shape[-1] - 1, heads, key),
        given(v_tail, n, gamma.shape[-1] - 1, heads, value),
        q.new_empty(n if final else 0, dtype=torch.int64),
        [q.new_empty(shape, dtype=sums) for shape in _saved_shapes(args)] if save else [],
    )


def _backward_fake(*args: Any) -> tuple[list[Tensor], ...]:
    return _AUTOGRAD.fake_grads(args[9:], args[32])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _AUTOGRAD.save(ctx, inputs, output[9])
    *ctx.options, _save, ctx.tf32 = inputs[_INPUTS:]
    ctx.shapes = [[tensor.shape for tensor in output[i]] for i in (2, 3, 4, 5)]


def _backward(operators: Any, ctx: Any, *grads: Any) -> tuple[Any, ...]:
    inputs, saved = _AUTOGRAD.restore(ctx)
    grad_o, grad_keys, *lists, grad_k_tail, grad_v_tail, _, _ = grads
    q, dtype = inputs[0], sums_dtype(inputs[0])
    tensors, *found = operators.exp_omega_rule_backward(
        *(grad_o, grad_keys),
        *(whole_grads(x, shapes, q, dtype) for x, shapes in zip(lists, ctx.shapes, strict=True)),
        *(grad_k_tail, grad_v_tail, saved, *inputs, *ctx.options),
        *(_AUTOGRAD.mask(ctx.needs_input_grad), ctx.tf32),
    )
    return _AUTOGRAD.scatter(ctx, tensors, found)


register_fake("exp_omega_rule")(_fake)
register_backward_fake("exp_omega_rule_backward", _backward_fake)
register_autograd("exp_omega_rule", _backward, _setup_context)
register_first_order("exp_omega_rule_backward")
register_autocast("exp_omega_rule", ("q", "k", "v"))
register_autocast("exp_omega_rule_backward", ())


def _flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return pass_flops(args[:_INPUTS], args[_INPUTS:], backward=False)


def _backward_flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return pass_flops(args[9 : 9 + _INPUTS], args[9 + _INPUTS :], backward=True)


register_flops("exp_omega_rule", _flops)
register_flops("exp_omega_rule_backward", _backward_flops)
