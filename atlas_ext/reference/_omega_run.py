"""Everything around an algorithm of the Omega rule: states, packed sequences, checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..state import OmegaState
from ._checks import check, compute_dtype, fail
from ._memory import Matrices
from ._omega_checks import (
    MemoryShapes,
    check_matrices,
    check_state,
    check_tokens,
    sequence_bounds,
)
from ._omega_inputs import Memory, Options, Tokens, prepare_tokens

Algorithm = Callable[[Tokens, Memory, Options], tuple[Tensor, Memory]]  # y [N, H, T, V]


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
    options: Options,
    initial_state: OmegaState | None,
    output_final_state: bool,
    cu_seqlens: Tensor | None,  # [N+1]
) -> tuple[Tensor, OmegaState | None]:
    """Checks, layouts, dtypes, the window tail, packed sequences and the final state."""
    gates = {"gamma": gamma, "eta": eta, "log_alpha": log_alpha, "log_theta": log_theta}
    check_tokens(op, q, k, v, gates, "B, T, H")
    bounds = sequence_bounds(op, q, cu_seqlens)
    num_sequences = q.shape[0] if bounds is None else len(bounds) - 1
    state = _initial_state(op, q, v, gamma, weights, options, initial_state, num_sequences)

    def sequences(slots: slice, batch: slice, span: slice) -> tuple[Tensor, OmegaState]:
        def cut(x: Tensor) -> Tensor:
            return x[batch, span]

        entering = _select(state, slots)
        tokens = prepare_tokens(
            cut(q),
            cut(k),
            cut(v),
            cut(gamma),
            cut(eta),
            None if log_alpha is None else cut(log_alpha),
            None if log_theta is None else cut(log_theta),
            entering.k_tail,
            entering.v_tail,
            entering.position,
        )
        memory = Memory(
            entering.weights, _entering_momentum(entering, log_theta), entering.chunk_weights
        )
        y, memory = algorithm(tokens, memory, options)
        return y.transpose(1, 2).to(q.dtype), _leaving(entering, tokens, memory)

    everything = slice(None)
    if bounds is None or len(bounds) == 1:
        o, final = sequences(everything, everything, everything)
    else:
        parts = [
            sequences(slice(n, n + 1), everything, slice(bounds[n], bounds[n + 1]))
            for n in range(len(bounds) - 1)
        ]
        o = torch.cat([part[0] for part in parts], dim=1)
        final = _concatenate([part[1] for part in parts])
    return o, final if output_final_state else None


def _initial_state(
    op: str,
    q: Tensor,
    v: Tensor,
    gamma: Tensor,
    weights: Sequence[Tensor] | None,
    options: Options,
    initial_state: OmegaState | None,
    num_sequences: int,
) -> OmegaState:
    heads, key_dim, value_dim, window = q.shape[-2], q.shape[-1], v.shape[-1], gamma.shape[-1]
    if options.residual:
        check(
            key_dim == value_dim,
            op,
            "residual",
            f"False where K = {key_dim} != V = {value_dim}",
            True,
        )
    shapes = MemoryShapes(num_sequences, heads, key_dim, value_dim, window, options.degree)
    if initial_state is not None:
        check_state(op, "initial_state", initial_state, shapes, compute_dtype(q))
        return initial_state
    if weights is None:
        fail(op, "weights", "weights or an initial_state", None)
    check_matrices(op, "weights", weights, shapes, True, (torch.float32, q.dtype))
    return OmegaState.init(
        weights,
        num_sequences=num_sequences,
        window=window,
        key_dim=key_dim,
        value_dim=value_dim,
        dtype=compute_dtype(q),
        tail_dtype=q.dtype,
    )


def _select(state: OmegaState, slots: slice) -> OmegaState:
    def each(matrices: Matrices) -> Matrices:
        return tuple(matrix[slots] for matrix in matrices)

    return OmegaState(
        each(state.weights),
        None if state.momentum is None else each(state.momentum),
        each(state.chunk_weights),
        state.k_tail[slots],
        state.v_tail[slots],
        state.position[slots],
    )


def _concatenate(states: Sequence[OmegaState]) -> OmegaState:
    def joined(parts: Sequence[Matrices]) -> Matrices:
        return tuple(torch.cat(matrices) for matrices in zip(*parts, strict=True))

    momenta = [state.momentum for state in states if state.momentum is not None]
    return OmegaState(
        joined([state.weights for state in states]),
        joined(momenta) if momenta else None,
        joined([state.chunk_weights for state in states]),
        torch.cat([state.k_tail for state in states]),
        torch.cat([state.v_tail for state in states]),
        torch.cat([state.position for state in states]),
    )


def _entering_momentum(state: OmegaState, log_theta: Tensor | None) -> Matrices | None:
    if log_theta is None:
        return None
    if state.momentum is None:
        return tuple(torch.zeros_like(matrix) for matrix in state.weights)
    return state.momentum


def _leaving(entering: OmegaState, tokens: Tokens, memory: Memory) -> OmegaState:
    """The final state: clones, for no two of its tensors share memory, nor any with an input."""

    def own(matrices: Matrices) -> Matrices:
        return tuple(matrix.clone() for matrix in matrices)

    def tail(x: Tensor, like: Tensor) -> Tensor:  # [N, W-1, H, width]
        last = x[:, :, tokens.length :].transpose(1, 2)
        return last.to(like.dtype).clone(memory_format=torch.contiguous_format)

    return OmegaState(
        own(memory.weights),
        None if memory.momentum is None else own(memory.momentum),
        own(memory.reference),
        tail(tokens.k, entering.k_tail),
        tail(tokens.v, entering.v_tail),
        entering.position + tokens.length,
    )
