"""The memory layer of the ATLAS family: the Omega rule between projections."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.omega_rule import omega_rule
from ..ops.omega_rule_update import omega_rule_update
from ..state import OmegaState
from .memory_init import default_step_size, initial_stds, memory_shapes
from .memory_layer import Gates, MemoryLayer, first_token
from .state import MemoryState


class OmegaMemory(MemoryLayer):
    """A sequence mixer whose memory learns at test time by the Omega rule (paper Eq. 9, 32-34).

    Projections, gates and output are those of `MemoryLayer`.

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
        head_dim = hidden_size // num_heads if head_dim is None else head_dim
        shapes = memory_shapes(memory, head_dim, degree, expansion)
        deep = len(shapes) > 1
        if step_size is None:
            step_size = default_step_size(
                *(objective, momentum, ns_steps, ns_every, chunk_size),
                degree=degree, matrices=len(shapes),
            )  # fmt: skip
        super().__init__(
            *(hidden_size, num_heads, head_dim),
            shapes=shapes, initial_stds=initial_stds(shapes, degree, activation), window=window,
            momentum=momentum, retention=retention, conv_size=conv_size, step_size=step_size,
            norm_eps=norm_eps,
        )  # fmt: skip
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
        self.feature_scales = None if degree is None else nn.Parameter(torch.empty(degree + 1))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, std: float | None = None) -> None:
        """Draws the weights; `std` of the linear maps defaults to 1/(2 sqrt(fan-in))."""
        super().reset_parameters(std)
        if self.feature_scales is not None:
            self.feature_scales.copy_(
                torch.tensor([math.factorial(n) ** -0.5 for n in range(len(self.feature_scales))])
            )

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
        o, memory = omega_rule(
            q, k, v, *gates,
            weights=tuple(self.memory_weights) if state is None else None,
            feature_scales=self.feature_scales,
            initial_state=None if state is None else _omega(state),
            output_final_state=return_state,
            cu_seqlens=cu_seqlens,
            **self.options,
        )  # fmt: skip
        return o, None if memory is None else MemoryState(memory, tail)

    def _update(
        self, q: Tensor, k: Tensor, v: Tensor, gates: Gates, state: MemoryState
    ) -> Tensor:  # [B, 1, H, V]
        o = omega_rule_update(
            q[:, 0], k[:, 0], v[:, 0], *first_token(gates),
            state=_omega(state), feature_scales=self.feature_scales, **self.options,
        )  # fmt: skip
        return o.unsqueeze(1)


def _omega(state: MemoryState) -> OmegaState:
    if not isinstance(state.memory, OmegaState):
        got = type(state.memory).__name__
        raise ValueError(f"OmegaMemory: state.memory: wanted an OmegaState, got {got}")
    return state.memory
