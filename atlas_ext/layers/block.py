"""A residual block: sequence mixers, then SwiGLU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_state
from .exp_omega_memory import ExpOmegaMemory
from .memory_as_context import MemoryAsContext
from .memory_as_gate import MemoryAsGate
from .omega_memory import OmegaMemory
from .sliding_window_attention import SlidingWindowAttention
from .state import LayerState, ParallelState


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

    With an `attention` (MAL) there is x + attention(norm(x)) between the two.

    Args:
        memory: the sequence mixer: a memory layer, or one with an attention in it (MAG, MAC).
        hidden_size: width of the residual stream.
        intermediate_size: hidden width of the SwiGLU MLP.
        attention: a sliding-window attention after the memory.
        norm_eps: of all RMSNorms.
    """

    def __init__(
        self,
        memory: OmegaMemory | ExpOmegaMemory | MemoryAsGate | MemoryAsContext,
        hidden_size: int,
        intermediate_size: int,
        *,
        attention: SlidingWindowAttention | None = None,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.memory_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.memory = memory
        self.attention = attention
        self.attention_norm = None
        if attention is not None:
            self.attention_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.mlp_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.mlp = SwiGLU(hidden_size, intermediate_size)

    def forward(
        self,
        x: Tensor,  # [B, T, hidden_size]
        state: LayerState | None = None,
        cu_seqlens: Tensor | None = None,  # [N+1]
        return_state: bool = False,
    ) -> tuple[Tensor, LayerState | None]:
        """Arguments and results as `OmegaMemory.forward`.

        Raises:
            ValueError: the state is that of another kind of block.
        """
        if self.attention is None or self.attention_norm is None:
            y, state = self.memory(self.memory_norm(x), state, cu_seqlens, return_state)
            x = x + y
            return x + self.mlp(self.mlp_norm(x)), state
        given = check_state("AtlasBlock", state, ParallelState)
        first, second = (None, None) if given is None else given
        y, first = self.memory(self.memory_norm(x), first, cu_seqlens, return_state)
        x = x + y
        y, second = self.attention(self.attention_norm(x), second, cu_seqlens, return_state)
        x = x + y
        last = None if first is None or second is None else ParallelState(first, second)
        return x + self.mlp(self.mlp_norm(x)), last
