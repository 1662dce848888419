"""The Omega rule with the exponential feature map (docs/math/exp_omega_rule.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from atlas_ext.ops._common import (
    grad_mask,
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
from atlas_ext.ops._omega_common import check_matrices_type, requires_grad
from atlas_ext.state import ExpOmegaState

_INPUTS = 16  # tensor arguments of the schema: q to cu_seqlens
# Gradients of exp_omega_rule_backward: an input's position to its place in `grads`, or to its list.
_TENSOR_GRADS = {0: 0, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 8: 7, 12: 8, 13: 9}
_LIST_GRADS = {7: 1, 9: 2, 10: 3, 11: 4}
_DIFFERENTIABLE = tuple(range(14))


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
            sequence; compiled code, which cannot read cu_seqlens, takes T for that.
        cu_seqlens: `[N + 1]`, int32 or int64, bounds of packed sequences; B is then 1.

    Returns:
        (o, final_state): `[B, T, H, V]` in q's dtype, and an `ExpOmegaState` or None. Sums and
        states are float32 (float64 for float64). Differentiable once with respect to every
        floating-point tensor, initial_state's included, and from every floating-point output.

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
    check_matrices_type(op, "weights", () if weights is None else weights)
    sequences = q.shape[0] if q.dim() > 0 else 0
    if cu_seqlens is not None:
        sequences = cu_seqlens.numel() - 1
    # One M_0 for all sequences: expanded without a copy, and autograd sums its gradient.
    matrices = [
        w.unsqueeze(0).expand(sequences, -1, -1, -1) if w.dim() == 3 else w for w in weights or ()
    ]
    return matrices, None, [], [], [], None, None, None


def _extra_rows(q: Tensor, state: ExpOmegaState | None, cu_seqlens: Tensor | None) -> int:
    """How many tokens more than T the longest sequence has after the call; negative where packed.

    Packed sequences are as long as their bounds say, which traced code cannot read: there it is an
    upper bound. A number, and no sum with T, so that traced code serves all T.
    """
    before = 0 if state is None else state.length
    if cu_seqlens is None or torch.compiler.is_compiling():
        return before
    if cu_seqlens.dim() != 1 or cu_seqlens.device.type != "cpu" or q.dim() < 2:
        return before  # refused by the operator
    lengths = cu_seqlens.diff()
    if state is not None and state.position.shape == lengths.shape:
        lengths = lengths + state.position
    longest: int = max([0, *lengths.tolist()])
    return longest - int(q.shape[1])


def _sums(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _sequences(q: Tensor, cu_seqlens: Tensor | None) -> int:
    return q.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1


def _chunks(q: Tensor, position: Tensor | None, cu_seqlens: Tensor | None, chunk: int) -> int:
    """An upper bound of the number of chunks that follows from shapes alone."""
    tokens, extra = q.shape[1], 0 if position is None else 1
    # No int(): it would turn a symbolic size into a constant, one compilation per length.
    if cu_seqlens is None:
        count: int = q.shape[0] * ((tokens + chunk - 1) // chunk + extra)
    else:
        count = tokens // chunk + _sequences(q, cu_seqlens) * (1 + extra)
    return count


def _smaller(a: Any, b: Any) -> Any:
    """min() would decide between symbolic sizes, which costs a compilation for either answer."""
    return torch.sym_min(a, b)  # type: ignore[no-untyped-call]


def _saved_shapes(args: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """Of the tensors that the backward needs again; (0,) where one is not needed."""
    q, _, v, gamma = args[:4]
    momentum, weights, position, cu_seqlens = args[6] is not None, args[7], args[14], args[15]
    objective, normalize, chunk = args[16], args[19], args[21]
    sets, row = row_sets(weights), row_width(weights, v.shape[-1])
    lead = (_chunks(q, position, cu_seqlens, chunk), q.shape[2])
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
    n, final, sums = _sequences(q, cu_seqlens), extra is not None, _sums(q)
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
    inputs, mask = args[9:25], args[32]

    def like(tensor: Tensor) -> Tensor:
        return tensor.new_empty(tensor.shape)

    grads = [inputs[0].new_empty(0) for _ in _TENSOR_GRADS]  # outputs must not alias
    lists: list[list[Tensor]] = [[], [], [], []]
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
    ctx.save_for_backward(*flat, *output[9])
    ctx.options = inputs[_INPUTS:-1]
    ctx.shapes = [[tensor.shape for tensor in output[i]] for i in (2, 3, 4, 5)]
    ctx.set_materialize_grads(False)


def _backward(operators: Any, ctx: Any, *grads: Any) -> tuple[Any, ...]:
    saved = list(ctx.saved_tensors)
    inputs: list[Any] = []
    for count in ctx.counts:
        inputs.append(saved.pop(0) if count is None else [saved.pop(0) for _ in range(count)])
    grad_o, grad_keys, *lists, grad_k_tail, grad_v_tail, _, _ = grads
    needed = ctx.needs_input_grad
    mask = grad_mask([_any(needed[i]) for i in _DIFFERENTIABLE])
    q = inputs[0]
    tensors, *found = operators.exp_omega_rule_backward(
        *(grad_o, grad_keys),
        *(_whole(x, shapes, q) for x, shapes in zip(lists, ctx.shapes, strict=True)),
        *(grad_k_tail, grad_v_tail, saved, *inputs, *ctx.options, mask),
    )
    result: list[Any] = [None] * (_INPUTS + len(ctx.options) + 1)
    for index, position in _TENSOR_GRADS.items():
        if needed[index]:
            result[index] = tensors[position]
    for index, position in _LIST_GRADS.items():
        result[index] = list(found[position - 1]) or [None] * ctx.counts[index]
    return tuple(result)


def _any(needed: Any) -> bool:
    return any(needed) if isinstance(needed, list | tuple) else bool(needed)


def _whole(grads: Any, shapes: list[Any], q: Tensor) -> list[Tensor]:
    """The list's gradients, zeros for tensors without one; empty where nothing came back."""
    if all(grad is None for grad in grads or []):
        return []
    pairs = zip(grads, shapes, strict=True)
    return [q.new_zeros(s, dtype=_sums(q)) if g is None else g for g, s in pairs]


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
