"""`AtlasConfig` as a transformers configuration."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers import PretrainedConfig

from ..models import AtlasConfig

CORE_FIELDS = tuple(field.name for field in dataclasses.fields(AtlasConfig))


class AtlasHFConfig(PretrainedConfig):
    """All fields of `AtlasConfig`, and what transformers adds to them.

    transformers' names `num_hidden_layers`, `num_attention_heads` and `tie_word_embeddings` stand
    for `num_layers`, `num_heads` and `tie_embeddings`.

    Args:
        vocab_size: number of token ids.
        use_cache: return a cache unless a call or training mode says otherwise.
        bos_token_id, eos_token_id, pad_token_id: ids of the special tokens.
        kwargs: fields of `AtlasConfig`, checked as there; what is left goes to transformers.

    Raises:
        ValueError: a field of `AtlasConfig` is out of range or at odds with the variant.
    """

    model_type = "atlas_ext"
    keys_to_ignore_at_inference = ["cache"]  # noqa: RUF012
    attribute_map = {  # noqa: RUF012
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "tie_word_embeddings": "tie_embeddings",
    }

    def __init__(
        self,
        vocab_size: int = 32_000,
        use_cache: bool = True,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        pad_token_id: int | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs = {self.attribute_map.get(name, name): value for name, value in kwargs.items()}
        given = {name: kwargs.pop(name) for name in CORE_FIELDS if name in kwargs}
        core = AtlasConfig(vocab_size=vocab_size, **given)
        for name, value in core.to_dict().items():
            setattr(self, name, value)
        self.use_cache = use_cache
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id
        self.pad_token_id = pad_token_id
        super().__init__(**kwargs)

    @classmethod
    def from_atlas(cls, config: AtlasConfig, **kwargs: Any) -> AtlasHFConfig:
        """The same model's configuration for transformers; `kwargs` are the other arguments."""
        return cls(**config.to_dict(), **kwargs)

    def to_atlas(self) -> AtlasConfig:
        """The configuration of the model itself, checked anew.

        Raises:
            ValueError: a field was changed to something out of range.
        """
        return AtlasConfig(**{name: getattr(self, name) for name in CORE_FIELDS})


class DeepTransformerHFConfig(AtlasHFConfig):
    """The same for the variants of `DeepTransformer`; deep_transformer unless given."""

    model_type = "atlas_ext_deep_transformer"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**({"variant": "deep_transformer"} | kwargs))
