"""The exponential Omega rule for one token, in place: decoding (docs/math/exp_omega_rule.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from atlas_ext.ops._common import operators, register_autocast, register_fake, register_flops
from atlas_ext.ops._exp_omega_common import (
    check_exp_state_type,
    scale_argument,
    state_lists,
    token_flops,
)
from atlas_ext.ops._omega_common import requires_grad
from atlas_ext.state import ExpOmegaState


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
) -> Tensor:
    """Take one token of N sequences: write it into `state`, in place, and read the result.

    Args:
        q, k, v, gamma, eta, log_alpha, log_theta and the options: as `exp_omega_rule` has them for
            one token; `[N, H, ...]`.
        state: it holds a momentum exactly when log_theta is given. Its tensors keep their storage
            as long as there is room for one more token; where there is none, the buffers of the
            rows are replaced by ones of at least twice the size (`ExpOmegaState.reserve`). Its rows
            (last dimensions) must be dense. On CUDA nothing waits for the device: a sequence whose
            position is negative, or for which there is no room, gets NaN and keeps its state.

    Returns:
        o: `[N, H, V]` in q's dtype, read after the write. Not differentiable.

    Raises:
        ValueError, RuntimeError: naming the argument, what was wanted and what came; also when
            grad mode is on and an input requires grad (use `exp_omega_rule` with T = 1).

    Source: arXiv 2505.23735, section 4; docs/math/exp_omega_rule.md.
    """
    op = "exp_omega_rule_update"
    check_exp_state_type(op, "state", state)
    number = scale_argument(op, scale, q.shape[-1] if q.dim() else 1)
    tokens = (q, k, v, gamma, eta, log_alpha, log_theta)
    if torch.is_grad_enabled() and requires_grad((*tokens, *state_lists(state))):
        raise RuntimeError(
            f"{op}: grad mode: wanted torch.no_grad() or inputs that need no gradient, got an "
            "input that requires grad; this op is not differentiable, use exp_omega_rule with T = 1"
        )
    state.reserve(1)
    states = state_lists(state)
    o = operators().exp_omega_rule_update(
        *tokens, *states, objective, activation, residual, normalize, number, chunk_size
    )
    state.length += 1
    if not torch.compiler.is_compiling():
        # Autograd must notice that tensors which some graph may have saved have changed.
        flat = [y for x in states for y in (x if isinstance(x, list) else (x,))]
        torch.autograd.graph.increment_version([t for t in flat if not t.is_inference()])
    return o  # type: ignore[no-any-return]


def _fake(*args: Any) -> Any:
    return args[2].new_empty(args[2].shape)


def _flops(*args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return token_flops(args)


register_fake("exp_omega_rule_update")(_fake)
register_autocast("exp_omega_rule_update", ("q", "k", "v"))
register_flops("exp_omega_rule_update", _flops)
