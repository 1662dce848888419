"""What the language models share: embedding, residual blocks, loss, generation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import AtlasBlock, LayerState
from .cache import AtlasCache
from .config import AtlasConfig
from .generation import check_sampling, sample_token, unpad

IGNORED_LABEL = -100
# parameters that decide how much a block adds to the residual stream
RESIDUAL_WRITES = ("out_proj.weight", "down_proj.weight", "product.attention_norm.weight")


@dataclass
class AtlasOutput:
    """Result of a model: `logits` [B, T, vocab_size], `loss` (scalar) and `cache` if asked for."""

    logits: Tensor
    loss: Tensor | None = None
    cache: AtlasCache | None = None


class LanguageModel(nn.Module):
    """Decoder-only language model; a subclass says which variants it takes and makes the blocks.

    Nothing in it depends on `module.training`: memories learn while the model is evaluated.

    Raises:
        ValueError: the variant is another model's.
    """

    variants: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: AtlasConfig) -> None:
        super().__init__()
        if config.variant not in self.variants:
            wanted = ", ".join(self.variants)
            raise ValueError(
                f"{self._name}: config.variant: wanted one of {wanted}, got {config.variant!r}"
            )
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([self._make_block(config) for _ in range(config.num_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        # tied: no second name for the embedding, so that state_dict holds no shared tensors
        self.lm_head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self._initialise()

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _make_block(self, config: AtlasConfig) -> AtlasBlock:
        raise NotImplementedError

    @torch.no_grad()
    def _initialise(self) -> None:
        """Small embeddings and logits (first loss about ln vocab_size); the maps that write to the
        residual stream shrink with depth."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        if self.lm_head is not None:
            nn.init.normal_(self.lm_head.weight, std=0.02)
        depth_scale = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith(RESIDUAL_WRITES):
                parameter.mul_(depth_scale)

    def forward(
        self,
        input_ids: Tensor,  # [B, T]
        labels: Tensor | None = None,  # [B, T]
        cache: AtlasCache | None = None,
        use_cache: bool = False,
        cu_seqlens: Tensor | None = None,  # [N+1]
    ) -> AtlasOutput:
        """Logits for every token, and the mean cross-entropy of the next one when labels are given.

        Args:
            input_ids: token ids, int64 or int32.
            labels: as input_ids, -100 where ignored; shifted inside, never across packed sequences.
            cache: goes on where it stands, with any number of tokens, and is updated in place.
            use_cache: return a cache; implied by `cache`.
            cu_seqlens: bounds of packed sequences; then B = 1 and a cache has N sequences.

        Raises:
            ValueError: input_ids, labels or the cache do not fit.
        """
        self._check_tokens(input_ids, labels)
        if use_cache and cache is None:
            cache = AtlasCache()
        logits = self.compute_logits(self.encode(self.embedding(input_ids), cache, cu_seqlens))
        loss = None if labels is None else next_token_loss(logits, labels, cu_seqlens)
        return AtlasOutput(logits, loss, cache)

    def encode(
        self,
        x: Tensor,  # [B, T, hidden_size]
        cache: AtlasCache | None = None,
        cu_seqlens: Tensor | None = None,  # [N+1]
        trace: list[Tensor] | None = None,
    ) -> Tensor:  # [B, T, hidden_size]
        """What `compute_logits` takes, from embeddings; the cache is updated in place.

        The input of each block is appended to `trace`.

        Raises:
            ValueError: the cache is none, or has another number or kind of layers.
        """
        if cache is not None and not isinstance(cache, AtlasCache):
            raise ValueError(
                f"{self._name}: cache: wanted an AtlasCache, got {type(cache).__name__}"
            )
        states: list[LayerState] | list[None] = [None] * len(self.blocks)
        if cache is not None and cache.layers:
            states = cache.layers
        if len(states) != len(self.blocks):
            raise ValueError(
                f"{self._name}: cache: wanted {len(self.blocks)} layers, got {len(states)}"
            )
        new_states = []
        recompute = self.config.activation_checkpointing and torch.is_grad_enabled()
        for block, state in zip(self.blocks, states, strict=True):
            if trace is not None:
                trace.append(x)
            arguments = (x, state, cu_seqlens, cache is not None)
            if recompute:
                x, state = checkpoint(
                    block, *arguments, use_reentrant=False, preserve_rng_state=False
                )
            else:
                x, state = block(*arguments)
            new_states.append(state)
        if cache is not None:
            cache.layers = new_states
        y: Tensor = self.norm(x)
        return y

    def compute_logits(self, x: Tensor) -> Tensor:  # [..., hidden_size] -> [..., vocab_size]
        """Scores of the next token, from the result of `encode`."""
        weight = self.embedding.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(x, weight)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,  # [B, T]
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        eos_token_id: int | None = None,
        generator: torch.Generator | None = None,
        attention_mask: Tensor | None = None,  # [B, T]
        cache: AtlasCache | None = None,
        callback: Callable[[Tensor], object] | None = None,
    ) -> Tensor:  # [B, T + new]
        """The prompt and up to `max_new_tokens` new tokens.

        The memory needed does not grow with the text for an `Atlas`; a `DeepTransformer`'s cache
        grows like a key-value cache.

        Args:
            input_ids: the prompts, at least one token long.
            max_new_tokens: number of tokens to add.
            temperature: 0 takes the likeliest token each time.
            top_k, top_p: restrict the choice to the likeliest tokens.
            eos_token_id: a sequence that drew it is filled up with it; all done: return early.
            generator: source of randomness, on the device of the model.
            attention_mask: 0 on the left of prompts that are shorter than others, 1 elsewhere. The
                padding is not seen; the result keeps it.
            cache: what came before `input_ids`; updated in place, at the end it has seen all but
                the last token. Give a `clone()` to try several continuations.
            callback: called with the new tokens, [B], after each step.

        Raises:
            ValueError: an option is out of range, a prompt is empty, or the mask does not fit.
        """
        check_sampling(max_new_tokens, temperature, top_k, top_p, eos_token_id)
        self._check_tokens(input_ids, None)
        if input_ids.shape[1] == 0:
            raise ValueError("generate: input_ids: wanted at least one token, got none")
        step, bounds = input_ids, None
        if attention_mask is not None:
            step, bounds = unpad(input_ids, attention_mask)
        cache = AtlasCache() if cache is None else cache
        pieces = [input_ids]
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for _ in range(max_new_tokens):
            hidden = self.encode(self.embedding(step), cache, bounds)
            last = hidden[:, -1] if bounds is None else hidden[0, bounds[1:] - 1]
            token = sample_token(self.compute_logits(last), temperature, top_k, top_p, generator)
            if eos_token_id is not None:
                token = token.masked_fill(done, eos_token_id)
                done |= token == eos_token_id
            step, bounds = token.unsqueeze(1), None
            pieces.append(step)
            if callback is not None:
                callback(token)
            if eos_token_id is not None and bool(done.all()):
                break
        return torch.cat(pieces, dim=1)

    def _check_tokens(self, input_ids: Tensor, labels: Tensor | None) -> None:
        if input_ids.dim() != 2 or input_ids.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"{self._name}: input_ids: wanted int64 or int32 [B, T], got {input_ids.dtype} "
                f"{list(input_ids.shape)}"
            )
        if labels is None:
            return
        if labels.shape != input_ids.shape or labels.dtype not in (torch.int64, torch.int32):
            raise ValueError(
                f"{self._name}: labels: wanted int64 or int32 {list(input_ids.shape)}, "
                f"got {labels.dtype} {list(labels.shape)}"
            )


def next_token_loss(
    logits: Tensor,  # [B, T, V]
    labels: Tensor,  # [B, T]
    cu_seqlens: Tensor | None = None,  # [N+1]
) -> Tensor:
    """Mean cross-entropy of labels[:, t+1] under logits[:, t], in float32; 0 without any label."""
    if cu_seqlens is not None:
        # the first token of a packed sequence is nobody's next; one slot more for bounds at T
        bounds = F.pad(labels, (0, 1))
        labels = bounds.index_fill(1, cu_seqlens.long(), IGNORED_LABEL)[:, :-1]
    scores = logits[:, :-1].flatten(0, 1)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    targets = labels[:, 1:].flatten().long()
    total = F.cross_entropy(scores, targets, ignore_index=IGNORED_LABEL, reduction="sum")
    return total / (targets != IGNORED_LABEL).sum().clamp(min=1)
