"""Building blocks of the ATLAS family as `torch.nn.Module`s."""

from .block import AtlasBlock, SwiGLU
from .omega_memory import OmegaMemory
from .short_convolution import ShortConvolution
from .state import MemoryState

__all__ = ["AtlasBlock", "MemoryState", "OmegaMemory", "ShortConvolution", "SwiGLU"]
