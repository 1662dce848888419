"""What the memory layers share: projections, gates, output."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_state
from .memory_init import INITIAL_ALPHA, INITIAL_GAMMA_SINGLE, INITIAL_THETA
from .short_convolution import ShortConvolution
from .state import MemoryState

Gates = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class MemoryLayer(nn.Module):
    """A sequence mixer around a rule that a subclass gives as `_rule` and, in place, `_update`.

    q, k, v: linear, causal convolution, SiLU; q and k are L2-normalised with a learned scale per
    head. Gates are linear maps of the input: gamma = sigmoid, alpha and theta = sigmoid (computed
    in log space), eta = `step_size` * softplus. The memory's output is RMS-normalised per head,
    multiplied by SiLU(linear(x)) and projected back. Training and evaluation mode do the same.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        head_dim: int,
        *,
        shapes: tuple[tuple[int, int], ...],  # [out, in] of the learned weights
        initial_stds: tuple[float, ...],
        window: int,
        momentum: bool,
        retention: bool,
        conv_size: int,
        step_size: float,
        norm_eps: float,
    ) -> None:
        super().__init__()
        if window < 1:
            name = type(self).__name__
            raise ValueError(f"{name}: window: wanted an integer >= 1, got {window}")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.window = window
        self.momentum = momentum
        self.retention = retention
        self.step_size = step_size
        self.initial_stds = initial_stds
        inner = num_heads * head_dim
        self.qkv_proj = nn.Linear(hidden_size, 3 * inner, bias=False)
        self.qkv_conv = ShortConvolution(3 * inner, conv_size, activation="silu")
        self.q_scale = nn.Parameter(torch.empty(num_heads))
        self.k_scale = nn.Parameter(torch.empty(num_heads))
        self.gate_sizes = [num_heads * window, num_heads] + [num_heads] * (retention + momentum)
        self.gates = nn.Linear(hidden_size, sum(self.gate_sizes))
        self.memory_weights = nn.ParameterList(
            [nn.Parameter(torch.empty(num_heads, *shape)) for shape in shapes]
        )
        self.norm = nn.RMSNorm(head_dim, eps=norm_eps)
        self.output_gate = nn.Linear(hidden_size, inner, bias=False)
        self.out_proj = nn.Linear(inner, hidden_size, bias=False)

    @torch.no_grad()
    def reset_parameters(self, std: float | None = None) -> None:
        """Draws the weights; `std` of the linear maps defaults to 1/(2 sqrt(fan-in))."""
        for linear in (self.qkv_proj, self.gates, self.output_gate, self.out_proj):
            nn.init.normal_(linear.weight, std=std or 0.5 * linear.in_features**-0.5)
        nn.init.normal_(self.gates.weight, std=0.2 * self.gates.in_features**-0.5)
        self.qkv_conv.reset_parameters()
        self.norm.reset_parameters()
        nn.init.ones_(self.q_scale)
        nn.init.ones_(self.k_scale)
        for weight, deviation in zip(self.memory_weights, self.initial_stds, strict=True):
            nn.init.normal_(weight, std=deviation)
        gamma = INITIAL_GAMMA_SINGLE if self.window == 1 else 1.0 / self.window
        initial = [_logit(gamma), math.log(math.e - 1.0)]  # softplus(log(e - 1)) = 1
        initial += [_logit(INITIAL_ALPHA)] * self.retention
        initial += [_logit(INITIAL_THETA)] * self.momentum
        for bias, value in zip(torch.split(self.gates.bias, self.gate_sizes), initial, strict=True):
            nn.init.constant_(bias, value)

    def forward(
        self,
        x: Tensor,  # [B, T, hidden_size]
        state: MemoryState | None = None,
        cu_seqlens: Tensor | None = None,  # [N+1]
        return_state: bool = False,
    ) -> tuple[Tensor, MemoryState | None]:
        """Mixes the tokens of each sequence; returns the output and, if asked, the state after it.

        A single token with a state and without gradients updates that state in place; otherwise
        the state given is left alone and a new one is returned.

        Raises:
            ValueError: x, the state or the bounds do not fit.
        """
        name, width = type(self).__name__, self.qkv_proj.in_features
        if x.dim() != 3 or x.shape[-1] != width:
            raise ValueError(f"{name}: x: wanted [B, T, {width}], got {list(x.shape)}")
        check_state(name, state, MemoryState)
        tail = None if state is None else state.conv
        qkv, tail = self.qkv_conv(self.qkv_proj(x), tail, cu_seqlens)
        q, k, v = qkv.reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).unbind(2)
        q = F.normalize(q, dim=-1) * self.q_scale[:, None]
        k = F.normalize(k, dim=-1) * self.k_scale[:, None]
        gates = self.compute_gates(x)
        if state is not None and updates_in_place(x, cu_seqlens):
            o = self._update(q, k, v, gates, state)
            state.conv.copy_(tail)
        else:
            o, state = self._rule(q, k, v, gates, tail, state, cu_seqlens, return_state)
        y = self.norm(o.to(self.norm.weight.dtype)).flatten(-2) * F.silu(self.output_gate(x))
        return self.out_proj(y), state

    def _rule(
        self,
        q: Tensor,  # [B, T, H, K]
        k: Tensor,  # [B, T, H, K]
        v: Tensor,  # [B, T, H, V]
        gates: Gates,
        tail: Tensor,  # [N, conv_size-1, 3*H*K]
        state: MemoryState | None,
        cu_seqlens: Tensor | None,
        return_state: bool,
    ) -> tuple[Tensor, MemoryState | None]:  # o [B, T, H, V]
        raise NotImplementedError

    def _update(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: MemoryState
    ) -> Tensor:  # [B, 1, H, V]
        raise NotImplementedError

    def compute_gates(self, x: Tensor) -> Gates:
        """gamma [B, T, H, W], eta, log_alpha and log_theta [B, T, H] of the input, in float32."""
        raw = self.gates(x)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        gamma, eta, *decays = torch.split(raw, self.gate_sizes, dim=-1)
        log_decays = [F.logsigmoid(decay) for decay in decays]
        log_theta = log_decays.pop() if self.momentum else None
        log_alpha = log_decays.pop() if self.retention else None
        gamma = torch.sigmoid(gamma).reshape(*x.shape[:-1], self.num_heads, self.window)
        return gamma, self.step_size * F.softplus(eta), log_alpha, log_theta


def updates_in_place(x: Tensor, cu_seqlens: Tensor | None) -> bool:
    """Whether a call with a state writes into that state."""
    return x.shape[1] == 1 and cu_seqlens is None and not torch.is_grad_enabled()


def first_token(gates: Gates) -> Gates:
    """The gates of the only token, without their time dimension."""
    gamma, eta, *decays = gates
    log_alpha, log_theta = (None if decay is None else decay[:, 0] for decay in decays)
    return gamma[:, 0], eta[:, 0], log_alpha, log_theta


def _logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))
