"""Everything around the exponential Omega rule: its state, packed sequences, checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..state import ExpOmegaState
from ._checks import check, check_floating, check_shape, compute_dtype
from ._memory import Matrices
from ._omega_checks import check_tokens, sequence_bounds
from ._omega_inputs import Tokens, prepare_tokens


@dataclass(frozen=True)
class ExpOptions:
    """The rule's options after checking."""

    objective: str
    activation: str
    residual: bool
    normalize: str
    scale: float | None
    chunk_size: int


@dataclass(frozen=True)
class ExpMemory:
    """N sequences that have all seen p tokens; heads before time."""

    keys: Tensor  # [N, H, p, K]
    rows: Matrices  # coefficients, each [N, H, p, R]
    momentum: Matrices | None  # of the rows, then of W2
    weights: Matrices  # () | (W0, W2) | (W0, W0g, W2)
    reference_rows: Matrices
    reference_weights: Matrices


Algorithm = Callable[[Tokens, ExpMemory, ExpOptions], tuple[Tensor, ExpMemory]]


def run(
    op: str,
    algorithm: Algorithm,
    q: Tensor,  # [B, T, H, K]
    k: Tensor,  # [B, T, H, K]
    v: Tensor,  # [B, T, H, V]
    gamma: Tensor,  # [B, T, H, W]
    eta: Tensor,  # [B, T, H]
    log_alpha: Tensor | None,  # [B, T, H]
    log_theta: Tensor | None,  # [B, T, H]
    weights: Sequence[Tensor] | None,
    options: ExpOptions,
    initial_state: ExpOmegaState | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,  # [N+1]
) -> tuple[Tensor, ExpOmegaState | None]:
    gates = {"gamma": gamma, "eta": eta, "log_alpha": log_alpha, "log_theta": log_theta}
    check_tokens(op, q, k, v, gates, "B, T, H")
    bounds = sequence_bounds(op, q, cu_seqlens)
    num_sequences = q.shape[0] if bounds is None else len(bounds) - 1
    state = _initial_state(op, q, v, gamma, weights, options, initial_state, num_sequences)
    positions: list[int] = state.position.tolist()

    def sequences(slots: slice, batch: slice, span: slice) -> tuple[Tensor, ExpOmegaState]:
        def cut(x: Tensor) -> Tensor:
            return x[batch, span]

        tokens = prepare_tokens(
            cut(q),
            cut(k),
            cut(v),
            cut(gamma),
            cut(eta),
            None if log_alpha is None else cut(log_alpha),
            None if log_theta is None else cut(log_theta),
            state.k_tail[slots],
            state.v_tail[slots],
            state.position[slots],
        )
        entering = _entering(state, slots, tokens, log_theta is not None)
        y, memory = algorithm(tokens, entering, options)
        return y.transpose(1, 2).to(q.dtype), _leaving(state, slots, tokens, memory)

    everything = slice(None)
    if bounds is not None and num_sequences > 0:
        parts = [
            sequences(slice(n, n + 1), everything, slice(bounds[n], bounds[n + 1]))
            for n in range(num_sequences)
        ]
        o = torch.cat([part[0] for part in parts], dim=1)
    elif len(set(positions)) > 1:
        parts = [
            sequences(slice(n, n + 1), slice(n, n + 1), everything) for n in range(num_sequences)
        ]
        o = torch.cat([part[0] for part in parts])
    else:
        parts = [sequences(everything, everything, everything)]
        o = parts[0][0]
    return o, _concatenate([part[1] for part in parts]) if output_final_state else None


def _initial_state(
    op: str,
    q: Tensor,
    v: Tensor,
    gamma: Tensor,
    weights: Sequence[Tensor] | None,
    options: ExpOptions,
    initial_state: ExpOmegaState | None,
    num_sequences: int,
) -> ExpOmegaState:
    heads, key_dim, value_dim, window = q.shape[-2], q.shape[-1], v.shape[-1], gamma.shape[-1]
    if options.residual:
        wanted = f"False where K = {key_dim} != V = {value_dim}"
        check(key_dim == value_dim, op, "residual", wanted, True)
    if initial_state is None:
        _check_weights(op, "weights", tuple(weights or ()), q, v, num_sequences)
        state = ExpOmegaState.init(
            weights,
            num_sequences=num_sequences,
            num_heads=heads,
            key_dim=key_dim,
            value_dim=value_dim,
            window=window,
            dtype=compute_dtype(q),
            device=q.device,
        )
        state.keys, state.k_tail = state.keys.to(q.dtype), state.k_tail.to(q.dtype)
        state.v_tail = state.v_tail.to(q.dtype)
        return state
    state = initial_state
    check(
        isinstance(state, ExpOmegaState),
        op,
        "initial_state",
        "an ExpOmegaState",
        type(state).__name__,
    )
    check(weights is None, op, "weights", "None where initial_state is given", "weights")
    name = "initial_state"
    _check_weights(op, f"{name}.weights", state.weights, q, v, num_sequences)
    width = state.weights[0].shape[-2] if state.weights else value_dim
    lead = (num_sequences, state.capacity, heads)
    check_shape(op, f"{name}.keys", state.keys, "[N, capacity, H, K]", (*lead, key_dim))
    count = max(1, len(state.weights) - 1)
    counts = {"coefficients": count, "chunk_weights": count + len(state.weights)}
    if state.momentum is not None:
        counts["momentum"] = count + len(state.weights[-1:])
    for field, wanted_count in counts.items():
        found = len(getattr(state, field))
        wanted = f"{wanted_count} tensors"
        check(found == wanted_count, op, f"{name}.{field}", wanted, f"{found} tensors")
    for index, rows in enumerate(state.coefficients):
        field = f"{name}.coefficients[{index}]"
        check_shape(op, field, rows, "[N, capacity, H, V or F]", (*lead, width))
    lead = (num_sequences, window - 1, heads)
    check_shape(op, f"{name}.k_tail", state.k_tail, "[N, W-1, H, K]", (*lead, key_dim))
    check_shape(op, f"{name}.v_tail", state.v_tail, "[N, W-1, H, V]", (*lead, value_dim))
    check_shape(op, f"{name}.position", state.position, "[N]", (num_sequences,))
    return state


def _check_weights(
    op: str, name: str, weights: Sequence[Tensor], q: Tensor, v: Tensor, num_sequences: int
) -> None:
    count = len(weights)
    check(count in (0, 2, 3), op, name, "None, (W0, W2) or (W0, W0g, W2)", f"{count} matrices")
    heads, key_dim, value_dim = q.shape[-2], q.shape[-1], v.shape[-1]
    for index, weight in enumerate(weights):
        field = f"{name}[{index}]"
        check_floating(op, field, weight)
        check(weight.dim() in (3, 4), op, field, "[H, out, in]", list(weight.shape))
        hidden = weights[0].shape[-2]
        sizes = (value_dim, hidden) if index == count - 1 else (hidden, key_dim)
        allowed = [(heads, *sizes), (num_sequences, heads, *sizes)]
        wanted = " or ".join(str(list(shape)) for shape in allowed)
        check(tuple(weight.shape) in allowed, op, field, wanted, list(weight.shape))


def _entering(state: ExpOmegaState, slots: slice, tokens: Tokens, has_momentum: bool) -> ExpMemory:
    seen = tokens.positions[0] if tokens.positions else 0
    count = len(state.coefficients)
    dtype = tokens.q.dtype

    def rows(buffers: Sequence[Tensor]) -> Matrices:  # [N, H, p, R]
        return tuple(buffer[slots, :seen].transpose(1, 2).to(dtype) for buffer in buffers)

    def matrices(weights: Sequence[Tensor]) -> Matrices:
        return tuple(weight[slots] for weight in weights)

    def both(tensors: Sequence[Tensor]) -> Matrices:
        return (*rows(tensors[:count]), *matrices(tensors[count:]))

    momentum = None
    if has_momentum:
        start = (*state.coefficients, *state.weights[-1:])
        zeros = tuple(torch.zeros_like(tensor) for tensor in start)
        momentum = both(zeros if state.momentum is None else state.momentum)
    return ExpMemory(
        rows((state.keys,))[0],
        rows(state.coefficients),
        momentum,
        matrices(state.weights),
        rows(state.chunk_weights[:count]),
        matrices(state.chunk_weights[count:]),
    )


def _leaving(
    state: ExpOmegaState, slots: slice, tokens: Tokens, memory: ExpMemory
) -> ExpOmegaState:
    """The final state, of copies, with no room to spare."""
    count = len(memory.rows)

    def rows(buffers: Sequence[Tensor]) -> Matrices:  # [N, p, H, R]
        turned = (buffer.transpose(1, 2) for buffer in buffers)
        return tuple(buffer.clone(memory_format=torch.contiguous_format) for buffer in turned)

    def matrices(weights: Sequence[Tensor]) -> Matrices:
        return tuple(weight.clone() for weight in weights)

    def tail(x: Tensor, like: Tensor) -> Tensor:  # [N, W-1, H, width]
        last = x[:, :, tokens.length :].transpose(1, 2)
        return last.to(like.dtype).clone(memory_format=torch.contiguous_format)

    momentum = memory.momentum
    if momentum is not None:
        momentum = (*rows(momentum[:count]), *matrices(momentum[count:]))
    return ExpOmegaState(
        keys=rows((memory.keys,))[0].to(state.keys.dtype),
        coefficients=rows(memory.rows),
        momentum=momentum,
        weights=matrices(memory.weights),
        chunk_weights=(*rows(memory.reference_rows), *matrices(memory.reference_weights)),
        k_tail=tail(tokens.k, state.k_tail),
        v_tail=tail(tokens.v, state.v_tail),
        position=state.position[slots] + tokens.length,
        length=memory.keys.shape[2],
    )


def _concatenate(states: Sequence[ExpOmegaState]) -> ExpOmegaState:
    if len(states) == 1:
        return states[0]
    length = max(state.length for state in states)
    count = len(states[0].coefficients)

    def padded(buffers: Sequence[Tensor]) -> Tensor:  # [N, length, H, R]
        return torch.cat(
            [
                torch.nn.functional.pad(buffer, (0, 0, 0, 0, 0, length - buffer.shape[1]))
                for buffer in buffers
            ]
        )

    def joined(parts: Sequence[Matrices], rows: int) -> Matrices:
        grouped = list(zip(*parts, strict=True))
        return (*map(padded, grouped[:rows]), *map(torch.cat, grouped[rows:]))

    momenta = [state.momentum for state in states if state.momentum is not None]
    return ExpOmegaState(
        keys=padded([state.keys for state in states]),
        coefficients=joined([state.coefficients for state in states], count),
        momentum=joined(momenta, count) if momenta else None,
        weights=joined([state.weights for state in states], 0),
        chunk_weights=joined([state.chunk_weights for state in states], count),
        k_tail=torch.cat([state.k_tail for state in states]),
        v_tail=torch.cat([state.v_tail for state in states]),
        position=torch.cat([state.position for state in states]),
        length=length,
    )
