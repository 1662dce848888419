"""The language model of the ATLAS family."""

from __future__ import annotations

from typing import Any

from ..layers import (
    AtlasBlock,
    MemoryAsContext,
    MemoryAsGate,
    OmegaMemory,
    SlidingWindowAttention,
)
from .config import AtlasConfig
from .language_model import IGNORED_LABEL, AtlasOutput, LanguageModel, next_token_loss
from .variants import ATLAS_VARIANTS

__all__ = ["IGNORED_LABEL", "Atlas", "AtlasOutput", "next_token_loss"]

# what an OmegaMemory takes from the configuration, under the same names
MEMORY_OPTIONS = (
    "head_dim", "memory", "expansion", "activation", "residual", "objective", "degree", "window",
    "momentum", "retention", "ns_steps", "ns_schedule", "ns_every", "chunk_size", "conv_size",
    "step_size", "norm_eps",
)  # fmt: skip


class Atlas(LanguageModel):
    """Decoder-only language model whose blocks mix tokens with an Omega-rule memory.

    `config.hybrid` adds an attention of constant size: beside the memory ("mag"), after it ("mal"),
    or over what the memory knows and the segment so far ("mac"). Nothing in it depends on
    `module.training`: memories learn while the model is evaluated.

    Raises:
        ValueError: the variant is a `DeepTransformer`'s.
    """

    variants = ATLAS_VARIANTS

    def _make_block(self, config: AtlasConfig) -> AtlasBlock:
        options = {name: getattr(config, name) for name in MEMORY_OPTIONS}
        width, eps = config.hidden_size, config.norm_eps
        memory = OmegaMemory(width, config.num_heads, **options)
        mixer: OmegaMemory | MemoryAsGate | MemoryAsContext = memory
        following = None
        heads: Any = config.swa_heads  # filled in where there is an attention
        if config.hybrid == "mac":
            mixer = MemoryAsContext(memory, width, heads, segment=config.swa_window, norm_eps=eps)
        elif config.hybrid is not None:
            attention = SlidingWindowAttention(width, heads, window=config.swa_window)
            if config.hybrid == "mag":
                mixer = MemoryAsGate(memory, attention, width, norm_eps=eps)
            else:
                following = attention
        return AtlasBlock(mixer, width, config.intermediate_size, attention=following, norm_eps=eps)
