"""MAG: a memory and a sliding-window attention side by side."""

from __future__ import annotations

from torch import Tensor, nn

from .checks import check_state
from .gated_product import GatedProduct
from .omega_memory import OmegaMemory
from .sliding_window_attention import SlidingWindowAttention
from .state import ParallelState


class MemoryAsGate(nn.Module):
    """`GatedProduct` of an attention and a memory that see the same input (paper, Atlas MAG).

    Args:
        memory, attention: the two, of the same width.
        hidden_size: that width.
        norm_eps: of the RMSNorms.
    """

    def __init__(
        self,
        memory: OmegaMemory,
        attention: SlidingWindowAttention,
        hidden_size: int,
        *,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.memory = memory
        self.attention = attention
        self.product = GatedProduct(hidden_size, norm_eps=norm_eps)

    def forward(
        self,
        x: Tensor,  # [B, T, hidden_size]
        state: ParallelState | None = None,
        cu_seqlens: Tensor | None = None,  # [N+1]
        return_state: bool = False,
    ) -> tuple[Tensor, ParallelState | None]:
        """Arguments, results and errors as `OmegaMemory.forward`."""
        check_state("MemoryAsGate", state, ParallelState)
        first, second = (None, None) if state is None else state
        memory, first = self.memory(x, first, cu_seqlens, return_state)
        attention, second = self.attention(x, second, cu_seqlens, return_state)
        if first is None or second is None:
            return self.product(attention, memory), None
        return self.product(attention, memory), ParallelState(first, second)
