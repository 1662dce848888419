"""One token of the Omega rule on a state in place."""

from __future__ import annotations

import torch
from torch import Tensor

from ..state import OmegaState
from ._checks import check, check_shape
from ._omega_checks import check_tokens
from .omega_rule import omega_rule


def omega_rule_update(
    q: Tensor,  # [M, H, K]
    k: Tensor,  # [M, H, K]
    v: Tensor,  # [M, H, V]
    gamma: Tensor,  # [M, H, W]
    eta: Tensor,  # [M, H]
    log_alpha: Tensor | None = None,  # [M, H]
    log_theta: Tensor | None = None,  # [M, H]
    *,
    state: OmegaState,
    state_indices: Tensor | None = None,  # [M] slots of the state; None: M = N in order
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
) -> Tensor:  # o [M, H, V]
    """:func:`omega_rule` for one token, writing the new state into ``state``'s own storage.

    Not differentiable: raises RuntimeError where grad mode is on and an input requires grad (use
    omega_rule with T = 1). Raises ValueError for malformed arguments, for ``log_theta`` without a
    momentum in the state or the reverse, and for slots out of range or named twice.
    """
    op = "omega_rule_update"
    gates = {"gamma": gamma, "eta": eta, "log_alpha": log_alpha, "log_theta": log_theta}
    check_tokens(op, q, k, v, gates, "M, H")
    check(isinstance(state, OmegaState), op, "state", "an OmegaState", type(state).__name__)
    has, wanted = state.momentum is not None, log_theta is not None
    check(has == wanted, op, "state.momentum", "a momentum exactly where log_theta is given", has)
    inputs = [q, k, v, *(gate for gate in gates.values() if gate is not None), *_tensors(state)]
    if feature_scales is not None:
        inputs.append(feature_scales)
    if torch.is_grad_enabled() and any(value.requires_grad for value in inputs):
        raise RuntimeError(
            f"{op}: inputs: wanted none that requires grad in grad mode (not differentiable; "
            "use omega_rule with T = 1), got one that does"
        )
    slots = _slots(op, state_indices, q.shape[0], state.position.shape[0])

    def one_token(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.unsqueeze(1)

    picked = _map(state, slots)
    o, final = omega_rule(
        q.unsqueeze(1),
        k.unsqueeze(1),
        v.unsqueeze(1),
        gamma.unsqueeze(1),
        eta.unsqueeze(1),
        one_token(log_alpha),
        one_token(log_theta),
        objective=objective,
        activation=activation,
        residual=residual,
        degree=degree,
        feature_scales=feature_scales,
        ns_steps=ns_steps,
        ns_schedule=ns_schedule,
        ns_scale=ns_scale,
        ns_every=ns_every,
        chunk_size=chunk_size,
        initial_state=picked,
        output_final_state=True,
    )
    assert final is not None
    with torch.no_grad():
        for target, value in zip(_tensors(state), _tensors(final), strict=True):
            target[slots] = value
    return o.squeeze(1)


def _slots(op: str, indices: Tensor | None, rows: int, num_sequences: int) -> Tensor:  # [M]
    if indices is None:
        got = f"{rows} rows and {num_sequences} slots"
        check(rows == num_sequences, op, "q", "M = N where state_indices is None", got)
        return torch.arange(num_sequences)
    integer = indices.dtype in (torch.int32, torch.int64)
    check(integer, op, "state_indices", "int32 or int64", indices.dtype)
    check_shape(op, "state_indices", indices, "[M]", (rows,))
    slots: list[int] = indices.tolist()
    valid = len(set(slots)) == rows and all(0 <= slot < num_sequences for slot in slots)
    check(valid, op, "state_indices", f"distinct slots below N = {num_sequences}", slots)
    return indices.to(torch.int64)


def _tensors(state: OmegaState) -> list[Tensor]:
    return [
        *state.weights,
        *(state.momentum or ()),
        *state.chunk_weights,
        state.k_tail,
        state.v_tail,
        state.position,
    ]


def _map(state: OmegaState, slots: Tensor) -> OmegaState:
    def each(matrices: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(matrix[slots] for matrix in matrices)

    return OmegaState(
        each(state.weights),
        None if state.momentum is None else each(state.momentum),
        each(state.chunk_weights),
        state.k_tail[slots],
        state.v_tail[slots],
        state.position[slots],
    )
