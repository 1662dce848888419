"""The language models whose memories see the exponential map."""

from __future__ import annotations

from ..layers import AtlasBlock, ExpOmegaMemory
from .config import AtlasConfig
from .language_model import LanguageModel
from .variants import ATTENTION_VARIANTS

# what an ExpOmegaMemory takes from the configuration, under the same names
MEMORY_OPTIONS = (
    "head_dim", "memory", "expansion", "activation", "residual", "objective", "normalize",
    "window", "momentum", "retention", "chunk_size", "conv_size", "step_size", "norm_eps",
)  # fmt: skip


class DeepTransformer(LanguageModel):
    """Decoder-only language model of the variants deep_transformer, swdt and dot.

    With a linear memory and `normalize="softmax"` its layers are softmax attention; deep memories
    generalise that. Cost O(T²), and a cache that grows with the text, as for a Transformer.

    Raises:
        ValueError: the variant is an `Atlas`'s.
    """

    variants = ATTENTION_VARIANTS

    def _make_block(self, config: AtlasConfig) -> AtlasBlock:
        options = {name: getattr(config, name) for name in MEMORY_OPTIONS}
        memory = ExpOmegaMemory(config.hidden_size, config.num_heads, **options)
        return AtlasBlock(
            memory, config.hidden_size, config.intermediate_size, norm_eps=config.norm_eps
        )
