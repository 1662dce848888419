"""The Omega rule for one token, in place: decoding (docs/math/omega_rule.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atlas_ext.ops._common import (
    allow_tf32,
    operators,
    register_autocast,
    register_fake,
    register_flops,
)
from atlas_ext.ops._omega_common import (
    check_state_type,
    degree_argument,
    requires_grad,
    schedule_arguments,
)
from atlas_ext.ops._omega_flops import update_flops
from atlas_ext.state import OmegaState


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
    state_indices: Tensor | None = None,  # [M]
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
) -> Tensor:
    """Take one token of M sequences: write it into `state`, in place, and read the result.

    Args:
        q, k, v, gamma, eta, log_alpha, log_theta and the options: as `omega_rule` has them for one
            token; `[M, H, ...]`.
        state: N slots; every tensor keeps its storage. Its rows (last dimensions) must be dense.
            It holds a momentum exactly when log_theta is given. The number of its weights says
            which memory it is: 1 linear, 2 an MLP, 3 a gated MLP.
        state_indices: `[M]`, int32 or int64, the slot of each row, no slot twice; None: M = N, in
            order. On CUDA nothing waits for the device: a row whose slot is not in 0..N-1, or whose
            position is negative, gets NaN and touches nothing, where the CPU raises.

    Returns:
        o: `[M, H, V]` in q's dtype, read after the write. Not differentiable.

    Raises:
        ValueError, RuntimeError: naming the argument, what was wanted and what came; also when
            grad mode is on and an input requires grad (use `omega_rule` with T = 1).

    Source: arXiv 2505.23735, equations 9 to 11, 32 and 33; docs/math/omega_rule.md.
    """
    op = "omega_rule_update"
    check_state_type(op, "state", state)
    table, schedule = schedule_arguments(ns_schedule)
    momentum = [] if state.momentum is None else list(state.momentum)
    states = [*state.weights, *momentum, *state.chunk_weights, state.k_tail, state.v_tail]
    tokens = (q, k, v, gamma, eta, log_alpha, log_theta)
    if torch.is_grad_enabled() and requires_grad((*tokens, states, feature_scales)):
        raise RuntimeError(
            f"{op}: grad mode: wanted torch.no_grad() or inputs that need no gradient, got an "
            "input that requires grad; this op is not differentiable, use omega_rule with T = 1"
        )
    o = operators().omega_rule_update(
        *tokens,
        *(list(state.weights), momentum, list(state.chunk_weights)),
        *(state.k_tail, state.v_tail, state.position, state_indices, feature_scales, table),
        *(objective, activation, residual, degree_argument(op, degree)),
        *(ns_steps, schedule, ns_scale, ns_every, chunk_size, allow_tf32()),
    )
    if not torch.compiler.is_compiling():
        # Autograd must notice that tensors which some graph may have saved have changed.
        changed = [t for t in (*states, state.position) if not t.is_inference()]
        torch.autograd.graph.increment_version(changed)
    return o  # type: ignore[no-any-return]


def _fake(*args: Any) -> Any:
    return args[2].new_empty(args[2].shape)


def _flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return update_flops(args)


register_fake("omega_rule_update")(_fake)
register_autocast("omega_rule_update", ("q", "k", "v"))
register_flops("omega_rule_update", _flops)
