"""A residual block: sequence mixer, then SwiGLU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .omega_memory import OmegaMemory
from .state import MemoryState


class SwiGLU(nn.Module):
    """`down(SiLU(gate(x)) * up(x))`, with gate and up in one matrix."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden_size, 2 * intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)
        for linear in (self.gate_up_proj, self.down_proj):
            nn.init.normal_(linear.weight, std=0.5 * linear.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:  # [..., hidden_size] -> the same
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        y: Tensor = self.down_proj(F.silu(gate) * up)
        return y


class AtlasBlock(nn.Module):
    """Pre-norm residual block (Llama macro-structure): x + memory(norm(x)), then x + mlp(norm(x)).

    Args:
        memory: the sequence mixer.
        hidden_size: width of the residual stream.
        intermediate_size: hidden width of the SwiGLU MLP.
        norm_eps: of both RMSNorms.
    """

    def __init__(
        self,
        memory: OmegaMemory,
        hidden_size: int,
        intermediate_size: int,
        *,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.memory_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.memory = memory
        self.mlp_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.mlp = SwiGLU(hidden_size, intermediate_size)

    def forward(
        self,
        x: Tensor,  # [B, T, hidden_size]
        state: MemoryState | None = None,
        cu_seqlens: Tensor | None = None,  # [N+1]
        return_state: bool = False,
    ) -> tuple[Tensor, MemoryState | None]:
        """Arguments and results as `OmegaMemory.forward`."""
        y, state = self.memory(self.memory_norm(x), state, cu_seqlens, return_state)
        x = x + y
        return x + self.mlp(self.mlp_norm(x)), state
