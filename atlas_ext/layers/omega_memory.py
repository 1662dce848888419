"""The memory layer: projections, gates and the Omega rule."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.omega_rule import omega_rule
from ..ops.omega_rule_update import omega_rule_update
from .memory_init import (
    INITIAL_ALPHA,
    INITIAL_GAMMA_SINGLE,
    INITIAL_THETA,
    default_step_size,
    initial_stds,
    memory_shapes,
)
from .short_convolution import ShortConvolution
from .state import MemoryState

Gates = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


class OmegaMemory(nn.Module):
    """A sequence mixer whose memory learns at test time by the Omega rule (paper Eq. 9, 32-34).

    q, k, v: linear, causal convolution, SiLU; q and k are L2-normalised with a learned scale per
    head. Gates are linear maps of the input: gamma = sigmoid, alpha and theta = sigmoid (computed
    in log space), eta = `step_size` * softplus. The memory's output is RMS-normalised per head,
    multiplied by SiLU(linear(x)) and projected back. Training and evaluation mode do the same.

    Args:
        hidden_size: width of input and output.
        num_heads: number of independent memories H.
        head_dim: K = V, width of a head; default hidden_size // num_heads.
        memory: "linear", "mlp" or "gated_mlp"; `expansion` * head_dim is the hidden width F.
        activation, residual: of a deep memory, as in `omega_rule`.
        objective: "l2" or "dot".
        degree: degree of the polynomial feature map; None: no map.
        window: W, number of tokens in the inner loss.
        momentum: keep a momentum of the gradients, with a gate theta.
        retention: let the memory fade, with a gate alpha; False: alpha = 1.
        ns_steps, ns_schedule, ns_every: Newton-Schulz (Muon), as in `omega_rule`.
        chunk_size: C; part of the model, not a tuning knob.
        conv_size: taps of the short convolution.
        step_size: eta at the initial bias; None: see `default_step_size`.
        norm_eps: of the output's RMSNorm.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        memory: str = "linear",
        expansion: int = 4,
        activation: str = "gelu",
        residual: bool = True,
        objective: str = "l2",
        degree: int | None = None,
        window: int = 16,
        momentum: bool = True,
        retention: bool = True,
        ns_steps: int = 0,
        ns_schedule: str = "muon",
        ns_every: int = 1,
        chunk_size: int = 64,
        conv_size: int = 4,
        step_size: float | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads if head_dim is None else head_dim
        self.window = window
        self.momentum = momentum
        self.retention = retention
        shapes = memory_shapes(memory, self.head_dim, degree, expansion)
        deep = len(shapes) > 1
        self.initial_stds = initial_stds(shapes, degree, activation)
        if step_size is None:
            step_size = default_step_size(
                *(objective, momentum, ns_steps, ns_every, chunk_size),
                degree=degree, matrices=len(shapes),
            )  # fmt: skip
        self.step_size = step_size
        self.options: dict[str, Any] = {
            "objective": objective,
            "activation": activation if deep else "gelu",
            "residual": residual and deep,
            "degree": degree,
            "ns_steps": ns_steps,
            "ns_schedule": ns_schedule,
            "ns_every": ns_every,
            "chunk_size": chunk_size,
        }
        inner = num_heads * self.head_dim
        self.qkv_proj = nn.Linear(hidden_size, 3 * inner, bias=False)
        self.qkv_conv = ShortConvolution(3 * inner, conv_size, activation="silu")
        self.q_scale = nn.Parameter(torch.empty(num_heads))
        self.k_scale = nn.Parameter(torch.empty(num_heads))
        self.gate_sizes = [num_heads * window, num_heads] + [num_heads] * (retention + momentum)
        self.gates = nn.Linear(hidden_size, sum(self.gate_sizes))
        self.memory_weights = nn.ParameterList(
            [nn.Parameter(torch.empty(num_heads, *shape)) for shape in shapes]
        )
        self.feature_scales = None if degree is None else nn.Parameter(torch.empty(degree + 1))
        self.norm = nn.RMSNorm(self.head_dim, eps=norm_eps)
        self.output_gate = nn.Linear(hidden_size, inner, bias=False)
        self.out_proj = nn.Linear(inner, hidden_size, bias=False)
        self.reset_parameters()

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
        if self.feature_scales is not None:
            self.feature_scales.copy_(
                torch.tensor([math.factorial(n) ** -0.5 for n in range(len(self.feature_scales))])
            )
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
        """
        tail = None if state is None else state.conv
        qkv, tail = self.qkv_conv(self.qkv_proj(x), tail, cu_seqlens)
        q, k, v = qkv.reshape(*x.shape[:2], 3, self.num_heads, self.head_dim).unbind(2)
        q = F.normalize(q, dim=-1) * self.q_scale[:, None]
        k = F.normalize(k, dim=-1) * self.k_scale[:, None]
        gates = self.compute_gates(x)
        in_place = x.shape[1] == 1 and cu_seqlens is None and not torch.is_grad_enabled()
        if state is not None and in_place:
            o = self._update(q, k, v, gates, state, tail)
        else:
            o, memory = omega_rule(
                q, k, v, *gates,
                weights=tuple(self.memory_weights) if state is None else None,
                feature_scales=self.feature_scales,
                initial_state=None if state is None else state.memory,
                output_final_state=return_state,
                cu_seqlens=cu_seqlens,
                **self.options,
            )  # fmt: skip
            state = None if memory is None else MemoryState(memory, tail)
        y = self.norm(o.to(self.norm.weight.dtype)).flatten(-2) * F.silu(self.output_gate(x))
        return self.out_proj(y), state

    def _update(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: MemoryState, tail: Tensor
    ) -> Tensor:  # [B, 1, H, V]
        gamma, eta, *decays = gates
        log_alpha, log_theta = (None if decay is None else decay[:, 0] for decay in decays)
        o = omega_rule_update(
            q[:, 0], k[:, 0], v[:, 0], gamma[:, 0], eta[:, 0], log_alpha, log_theta,
            state=state.memory, feature_scales=self.feature_scales, **self.options,
        )  # fmt: skip
        state.conv.copy_(tail)
        return o.unsqueeze(1)

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


def _logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))
