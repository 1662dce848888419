"""The models that are compared: the same blocks around different memories, of one size."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, NamedTuple

import torch

from atlas_ext.layers import AtlasBlock, SlidingWindowAttention
from atlas_ext.models import Atlas, AtlasConfig, DeepTransformer
from atlas_ext.models.language_model import LanguageModel
from atlas_ext.models.variants import ATLAS_VARIANTS

ATTENTION = "attention"
FIRST = "atlas"  # the model whose size the others are given
HIDDEN_SIZE = 48  # of the first
WIDTHS = range(16, 513)
SWA_WINDOW = 16  # of the sliding-window baseline: as many tokens as Atlas has in its inner loss


class Recipe(NamedTuple):
    """How a model differs from the others."""

    variant: str
    options: dict[str, Any]


MODELS: dict[str, Recipe] = {
    "transformer": Recipe(ATTENTION, {"swa_window": 2**20}),
    "swa": Recipe(ATTENTION, {"swa_window": SWA_WINDOW}),
    "linear_attention": Recipe("linear_attention", {}),
    "delta": Recipe("delta", {"chunk_size": 1}),  # the exact delta rule
    "titans": Recipe("titans", {}),
    "omeganet": Recipe("omeganet", {}),
    "atlas": Recipe("atlas", {"ns_every": 16}),
    "atlas++": Recipe("atlas++", {"ns_every": 16}),
    "deep_transformer": Recipe("deep_transformer", {}),
    "dot": Recipe("dot", {}),
    "atlas-window-1": Recipe("atlas", {"ns_every": 16, "window": 1}),
    "atlas-no-polynomial": Recipe("atlas", {"ns_every": 16, "degree": None}),
    "atlas-linear-memory": Recipe("atlas", {"ns_every": 16, "memory": "linear"}),
    "atlas-no-muon": Recipe("atlas", {"ns_steps": 0}),
}
ABLATIONS = tuple(name for name in MODELS if name.startswith("atlas-"))


class AttentionModel(LanguageModel):
    """Softmax attention with rotary positions over the last `config.swa_window` tokens, in the
    blocks of the other models. The rest of the memory's configuration has no meaning here."""

    variants = ("linear_attention",)

    def _make_block(self, config: AtlasConfig) -> AtlasBlock:
        attention: Any = SlidingWindowAttention(
            config.hidden_size, config.num_heads, head_dim=config.head_dim, window=config.swa_window
        )
        return AtlasBlock(
            attention, config.hidden_size, config.intermediate_size, norm_eps=config.norm_eps
        )


def configure(name: str, vocab_size: int, hidden_size: int) -> AtlasConfig:
    """Configuration of a model of a given width: 2 layers, 4 heads of 8, chunks of 16,
    one matrix for embedding and output (which makes recall much quicker to learn).

    Raises:
        ValueError: no model has that name.
    """
    if name not in MODELS:
        raise ValueError(f"models: name: wanted one of {', '.join(MODELS)}, got {name!r}")
    recipe = MODELS[name]
    fields: dict[str, Any] = {
        "num_layers": 2, "num_heads": 4, "head_dim": 8, "chunk_size": 16,
        "tie_embeddings": True,
        "variant": "linear_attention" if recipe.variant == ATTENTION else recipe.variant,
    }  # fmt: skip
    return AtlasConfig(vocab_size=vocab_size, hidden_size=hidden_size, **(fields | recipe.options))


def from_config(name: str, config: AtlasConfig) -> LanguageModel:
    if MODELS[name].variant == ATTENTION:
        return AttentionModel(config)
    return Atlas(config) if config.variant in ATLAS_VARIANTS else DeepTransformer(config)


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def matched_width(name: str, vocab_size: int) -> int:
    """Width at which a model has about as many parameters as the first one at HIDDEN_SIZE."""

    def count(model: str, width: int) -> int:
        with torch.device("meta"):
            return count_parameters(from_config(model, configure(model, vocab_size, width)))

    if name == FIRST:
        return HIDDEN_SIZE
    target = count(FIRST, HIDDEN_SIZE)
    above = bisect_left(WIDTHS, target, key=lambda width: count(name, width))
    around = WIDTHS[max(above - 1, 0) : above + 1]
    return min(around, key=lambda width: abs(count(name, width) - target))


def build(name: str, vocab_size: int, *, hidden_size: int | None = None) -> LanguageModel:
    """A model by its name; its width is chosen so that all models have about as many parameters,
    unless it is given."""
    if hidden_size is None:
        hidden_size = matched_width(name, vocab_size)
    return from_config(name, configure(name, vocab_size, hidden_size))


@torch.no_grad()
def state_bytes(model: LanguageModel, length: int) -> int:
    """Bytes that a float32 model keeps of a sequence of `length` tokens to go on from there."""
    if isinstance(model, AttentionModel):  # without the empty slots of its cache
        config: Any = model.config
        kept = min(length, config.swa_window - 1)
        return 2 * 4 * config.num_layers * kept * config.num_heads * config.head_dim
    cache = model(torch.zeros(1, length, dtype=torch.int64), use_cache=True).cache
    size: int = cache.num_bytes
    return size
