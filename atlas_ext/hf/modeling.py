"""`Atlas` as a transformers model."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from ..models import Atlas, AtlasCache, DeepTransformer
from ..models.language_model import IGNORED_LABEL, LanguageModel, next_token_loss
from .cache import AtlasHFCache
from .config import AtlasHFConfig, DeepTransformerHFConfig
from .padding import Packing, find_padding, sequence_bounds


class AtlasForCausalLM(PreTrainedModel, GenerationMixin):
    """`Atlas` (as `model`) with transformers' interface: generate, save, load, Trainer.

    Padding never reaches the memory: tokens whose attention mask is 0 are left out, wherever they
    stand, and get logits of 0.
    """

    config_class: ClassVar[type[AtlasHFConfig]] = AtlasHFConfig
    core_type: ClassVar[type[LanguageModel]] = Atlas
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _is_stateful = True  # what was read cannot be taken back: no assisted generation
    _no_split_modules = ["AtlasBlock"]  # noqa: RUF012

    def __init__(self, config: AtlasHFConfig) -> None:
        if not isinstance(config, self.config_class):
            got, wanted = type(config).__name__, self.config_class.__name__
            raise ValueError(f"{type(self).__name__}: config: wanted {wanted}, got {got}")
        super().__init__(config)
        self.model = self.core_type(config.to_atlas())
        self.gradient_checkpointing = self.model.config.activation_checkpointing
        if not any(parameter.is_meta for parameter in self.parameters()):
            self._mark_initialised()
        self.post_init()

    @classmethod
    def from_atlas(cls, model: LanguageModel, **kwargs: Any) -> AtlasForCausalLM:
        """Wraps a model, whose parameters are shared; `kwargs` are `AtlasHFConfig`'s."""
        with torch.device("meta"):
            wrapper = cls(cls.config_class.from_atlas(model.config, **kwargs))
        wrapper.model = model
        wrapper._mark_initialised()
        wrapper.train(model.training)
        return wrapper

    def _mark_initialised(self) -> None:
        for parameter in self.model.parameters():
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Weights that a checkpoint lacks get what a new model has; others stay as they are."""
        missing = {
            name: parameter
            for name, parameter in self.model.named_parameters()
            if not getattr(parameter, "_is_hf_initialized", False)
        }
        if missing:
            fresh = self.core_type(self.config.to_atlas())
            for name, parameter in missing.items():
                parameter.copy_(fresh.get_parameter(name))

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embedding = value
        # a resized vocabulary
        self.model.config = dataclasses.replace(self.model.config, vocab_size=value.num_embeddings)

    def get_output_embeddings(self) -> nn.Module | None:
        """None for tied embeddings: there is no second matrix."""
        return self.model.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.model.lm_head = value

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        # the model's own: a block's state must not be advanced by its recomputation
        self.model.config = dataclasses.replace(self.model.config, activation_checkpointing=enable)
        self.gradient_checkpointing = enable

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        if generation_config.cache_implementation is not None:
            raise ValueError(
                "AtlasForCausalLM: cache_implementation: wanted None, "
                f"got {generation_config.cache_implementation!r}"
            )
        if model_kwargs.get("cache") is None and generation_config.use_cache is not False:
            model_kwargs["cache"] = AtlasHFCache()

    def forward(
        self,
        input_ids: Tensor | None = None,  # [B, T]
        attention_mask: Tensor | None = None,  # [B, T or more]
        inputs_embeds: Tensor | None = None,  # [B, T, hidden_size]
        cache: AtlasHFCache | AtlasCache | None = None,
        labels: Tensor | None = None,  # [B, T]
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        cu_seqlens: Tensor | None = None,  # [N + 1]
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits for every token, and the mean cross-entropy of the next one when labels are given.

        Args:
            input_ids: token ids, int64; or `inputs_embeds` in their place.
            attention_mask: 0 for padding; the last T columns count.
            cache: goes on where it stands and is updated in place.
            labels: as input_ids, shifted inside; -100 and padding are ignored.
            use_cache: return a cache; the default is the configuration's, and False in training.
            output_hidden_states: return the input of every block and what the logits are made of.
            logits_to_keep: only the logits of so many last tokens, or of those named.
            cu_seqlens: bounds of packed sequences; then B = 1. `cu_seq_lens_q` and `position_ids`
                that start again at 0 mean the same.
            num_items_in_batch: divide the summed loss by this instead of by the number of labels.

        Raises:
            ValueError: an argument contradicts another, or has a wrong shape.
        """
        return_dict = self.config.return_dict if return_dict is None else return_dict
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        cache = kwargs.get("past_key_values", cache)
        cache = AtlasHFCache(cache) if isinstance(cache, AtlasCache) else cache
        if cache is None and use_cache:
            cache = AtlasHFCache()
        x = self._embed(input_ids, inputs_embeds)
        if labels is not None and labels.shape != x.shape[:2]:
            raise ValueError(
                f"AtlasForCausalLM: labels: wanted {list(x.shape[:2])}, got {list(labels.shape)}"
            )
        bounds = kwargs.get("cu_seq_lens_q") if cu_seqlens is None else cu_seqlens
        padding = find_padding(attention_mask, *x.shape[:2])
        if cache is not None:
            cache.seen += x.shape[1]
        if padding is not None:
            if bounds is not None:
                raise ValueError(
                    "AtlasForCausalLM: attention_mask: wanted none beside cu_seqlens, got padding"
                )
            x, bounds = padding.pack(x), padding.cu_seqlens
            labels = None if labels is None else padding.pack(labels)
        elif bounds is None and kwargs.get("position_ids") is not None:
            bounds = sequence_bounds(kwargs["position_ids"])
        trace: list[Tensor] | None = [] if output_hidden_states else None
        x = self.model.encode(x, None if cache is None else cache.atlas, bounds, trace)
        loss, logits = None, None
        if labels is not None:
            logits = self.model.compute_logits(x)
            loss = _scaled_loss(logits, labels, bounds, num_items_in_batch)
            logits = slice_logits_to_keep(_unpack(logits, padding), logits_to_keep)
        else:
            kept = slice_logits_to_keep(_unpack(x, padding), logits_to_keep)
            logits = self.model.compute_logits(kept)
        output = CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            cache=cache,
            hidden_states=None
            if trace is None
            else tuple(_unpack(state, padding) for state in [*trace, x]),
        )
        return output if return_dict else output.to_tuple()

    def _embed(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError(
                "AtlasForCausalLM: input_ids, inputs_embeds: wanted one of them, "
                f"got {'none' if input_ids is None else 'both'}"
            )
        x: Tensor = self.model.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        if x.dim() != 3:
            raise ValueError(
                f"AtlasForCausalLM: input_ids: wanted [B, T], got {list(x.shape[:-1])}"
            )
        return x


class DeepTransformerForCausalLM(AtlasForCausalLM):
    """`DeepTransformer` (as `model`) with the same interface; its cache grows with the text."""

    config_class = DeepTransformerHFConfig
    core_type = DeepTransformer


def _unpack(x: Tensor, padding: Packing | None) -> Tensor:
    return x if padding is None else padding.unpack(x)


def _scaled_loss(
    logits: Tensor,  # [B, T, vocab_size]
    labels: Tensor,  # [B, T]
    cu_seqlens: Tensor | None,  # [N + 1]
    num_items: Tensor | int | None,
) -> Tensor:
    """Mean cross-entropy, or its sum over `num_items` (gradient accumulation of the Trainer)."""
    labels = labels.to(logits.device)
    if cu_seqlens is not None:
        # the first token of a sequence is nobody's next; one slot more for bounds at T
        wide = nn.functional.pad(labels, (0, 1))
        labels = wide.index_fill(1, cu_seqlens.long(), IGNORED_LABEL)[:, :-1]
    loss = next_token_loss(logits, labels)
    if num_items is None:
        return loss
    return loss * (labels[:, 1:] != IGNORED_LABEL).sum() / num_items
