"""One token of the exponential Omega rule on a state in place."""

from __future__ import annotations

import torch
from torch import Tensor

from ..state import ExpOmegaState
from ._checks import check
from ._omega_checks import check_tokens
from .exp_omega_rule import exp_omega_rule


def exp_omega_rule_update(
    q: Tensor,  # [N, H, K]
    k: Tensor,  # [N, H, K]
    v: Tensor,  # [N, H, V]
    gamma: Tensor,  # [N, H, W]
    eta: Tensor,  # [N, H]
    log_alpha: Tensor | None = None,  # [N, H]
    log_theta: Tensor | None = None,  # [N, H]
    *,
    state: ExpOmegaState,
    objective: str = "dot",
    activation: str = "gelu",
    residual: bool = False,
    normalize: str = "none",
    scale: float | None = None,
    chunk_size: int = 64,
) -> Tensor:  # o [N, H, V]
    """:func:`exp_omega_rule` for one token, into ``state``, whose buffers grow as they must.

    Not differentiable: raises RuntimeError where grad mode is on and an input requires grad.
    Raises ValueError as exp_omega_rule does, and for ``log_theta`` without a momentum in the state
    or the reverse.
    """
    op = "exp_omega_rule_update"
    gates = {"gamma": gamma, "eta": eta, "log_alpha": log_alpha, "log_theta": log_theta}
    check_tokens(op, q, k, v, gates, "N, H")
    check(isinstance(state, ExpOmegaState), op, "state", "an ExpOmegaState", type(state).__name__)
    has, wanted = state.momentum is not None, log_theta is not None
    check(has == wanted, op, "state.momentum", "a momentum exactly where log_theta is given", has)
    inputs = [q, k, v, *(gate for gate in gates.values() if gate is not None), *_tensors(state)]
    if torch.is_grad_enabled() and any(value.requires_grad for value in inputs):
        raise RuntimeError(
            f"{op}: inputs: wanted none that requires grad in grad mode (not differentiable; "
            "use exp_omega_rule with T = 1), got one that does"
        )
    o, final = exp_omega_rule(
        q.unsqueeze(1),
        k.unsqueeze(1),
        v.unsqueeze(1),
        gamma.unsqueeze(1),
        eta.unsqueeze(1),
        None if log_alpha is None else log_alpha.unsqueeze(1),
        None if log_theta is None else log_theta.unsqueeze(1),
        objective=objective,
        activation=activation,
        residual=residual,
        normalize=normalize,
        scale=scale,
        chunk_size=chunk_size,
        initial_state=state,
        output_final_state=True,
    )
    assert final is not None
    state.reserve(1)
    final.reserve(state.capacity - final.length)
    with torch.no_grad():
        for target, value in zip(_tensors(state), _tensors(final), strict=True):
            target.copy_(value if target.shape == value.shape else value[:, : target.shape[1]])
    state.length = final.length
    return o.squeeze(1)


def _tensors(state: ExpOmegaState) -> list[Tensor]:
    return [
        state.keys,
        *state.coefficients,
        *(state.momentum or ()),
        *state.weights,
        *state.chunk_weights,
        state.k_tail,
        state.v_tail,
        state.position,
    ]
