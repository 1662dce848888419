"""One token of decoding in plain PyTorch, into the state: the Omega rule, and over the exponential.

As `omega_rule_update` and `exp_omega_rule_update` do it with the l2 objective, decay and momentum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_ext.state import ExpOmegaState, OmegaState
from bench.eager.memory import activate, gradients, is_gated


def omega_rule_update(
    q: Tensor,  # [M, H, K]
    k: Tensor,  # [M, H, K]
    v: Tensor,  # [M, H, V]
    gamma: Tensor,  # [M, H, W]
    eta: Tensor,  # [M, H]
    log_alpha: Tensor,  # [M, H]
    log_theta: Tensor,  # [M, H]
    *,
    state: OmegaState,
    residual: bool = False,
    chunk_size: int = 64,
) -> Tensor:  # [M, H, V]
    """Linear and MLP memories, updated in place; their positions must fill the window."""
    keys = torch.cat([state.k_tail, k[:, None]], 1)  # [M, W, H, K]
    values = torch.cat([state.v_tail, v[:, None]], 1)
    x, y = (rows.transpose(1, 2).flatten(0, 1) for rows in (keys, values))  # [M*H, W, ...]
    gates = gamma.flip(-1).flatten(0, 1).unsqueeze(-1)  # oldest first, as the rows are
    alpha, theta = log_alpha.exp().view(-1, 1, 1), log_theta.exp().view(-1, 1, 1)
    assert state.momentum is not None
    reference = [w.flatten(0, 1) for w in state.chunk_weights]
    u = q.flatten(0, 1).unsqueeze(1)  # [M*H, 1, K]
    pairs = gradients(reference, x, y - x if residual else y)
    for layer, (d, inputs) in enumerate(pairs):
        weight, momentum = (s[layer].flatten(0, 1) for s in (state.weights, state.momentum))
        momentum.mul_(theta).baddbmm_((gates * d).mT, inputs)
        weight.mul_(alpha).sub_(eta.view(-1, 1, 1) * momentum)
        u = activate(u, is_gated(reference)) if layer == 1 else u
        u = torch.bmm(u, weight.mT)
    state.k_tail.copy_(keys[:, 1:])
    state.v_tail.copy_(values[:, 1:])
    state.position.add_(1)
    ends = state.position % chunk_size == 0
    for kept, weight in zip(state.chunk_weights, state.weights, strict=True):
        kept[ends] = weight[ends]
    out = u.view_as(v)
    return out + q if residual else out


def exp_omega_rule_update(
    q: Tensor,  # [N, H, K]
    k: Tensor,  # [N, H, K]
    v: Tensor,  # [N, H, V]
    gamma: Tensor,  # [N, H, W]
    eta: Tensor,  # [N, H]
    log_alpha: Tensor,  # [N, H]
    log_theta: Tensor,  # [N, H]
    *,
    state: ExpOmegaState,
    chunk_size: int = 64,
) -> Tensor:  # [N, H, V]
    """The linear memory, updated in place; all sequences at one position, as full as the window."""
    position, scale = state.length, q.shape[-1] ** -0.5
    state.reserve(1)
    state.keys[:, position] = k
    seen, width = position + 1, gamma.shape[-1]
    keys, near = state.keys[:, :seen].transpose(1, 2), slice(seen - width, seen)  # [N, H, p, K]
    values = torch.cat([state.v_tail, v[:, None]], 1)  # [N, W, H, V]
    assert state.momentum is not None
    held = (state.coefficients, state.momentum, state.chunk_weights)
    rows, momentum, reference = (s[0][:, :seen].transpose(1, 2) for s in held)
    scores = (scale * keys[:, :, near] @ keys.mT).exp()  # [N, H, W, p]
    errors = scores @ reference - values.transpose(1, 2)
    momentum.mul_(log_theta.exp()[..., None, None])
    momentum[:, :, near] += gamma.flip(-1).unsqueeze(-1) * errors
    rows.mul_(log_alpha.exp()[..., None, None]).sub_(eta[..., None, None] * momentum)
    out = (scale * q.unsqueeze(2) @ keys.mT).exp() @ rows
    state.k_tail.copy_(torch.cat([state.k_tail[:, 1:], k[:, None]], 1))
    state.v_tail.copy_(values[:, 1:])
    state.position.add_(1)
    state.length = seen
    if seen % chunk_size == 0:
        reference.copy_(rows)
    return out.squeeze(2)
