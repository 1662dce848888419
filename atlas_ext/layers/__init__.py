"""Building blocks of the ATLAS family as `torch.nn.Module`s."""

from .block import AtlasBlock, SwiGLU
from .exp_omega_memory import ExpOmegaMemory
from .gated_product import GatedProduct
from .memory_as_context import MemoryAsContext
from .memory_as_gate import MemoryAsGate
from .omega_memory import OmegaMemory
from .short_convolution import ShortConvolution
from .sliding_window_attention import SlidingWindowAttention
from .state import AttentionState, ContextState, LayerState, MemoryState, ParallelState

__all__ = [
    "AtlasBlock",
    "AttentionState",
    "ContextState",
    "ExpOmegaMemory",
    "GatedProduct",
    "LayerState",
    "MemoryAsContext",
    "MemoryAsGate",
    "MemoryState",
    "OmegaMemory",
    "ParallelState",
    "ShortConvolution",
    "SlidingWindowAttention",
    "SwiGLU",
]
