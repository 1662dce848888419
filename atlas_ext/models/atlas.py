"""The language model of the ATLAS family."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..layers import AtlasBlock, OmegaMemory
from .cache import AtlasCache
from .config import AtlasConfig
from .generation import check_sampling, sample_token

IGNORED_LABEL = -100
# what an OmegaMemory takes from the configuration, under the same names
MEMORY_OPTIONS = (
    "head_dim", "memory", "expansion", "activation", "residual", "objective", "degree", "window",
    "momentum", "retention", "ns_steps", "ns_schedule", "ns_every", "chunk_size", "conv_size",
    "step_size", "norm_eps",
)  # fmt: skip


@dataclass
class AtlasOutput:
    """Result of a model: `logits` [B, T, vocab_size], `loss` (scalar) and `cache` if asked for."""

    logits: Tensor
    loss: Tensor | None = None
    cache: AtlasCache | None = None


class Atlas(nn.Module):
    """Decoder-only language model whose blocks mix tokens with an Omega-rule memory.

    Nothing in it depends on `module.training`: memories learn while the model is evaluated.
    """

    def __init__(self, config: AtlasConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList([_make_block(config) for _ in range(config.num_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        # tied: no second name for the embedding, so that state_dict holds no shared tensors
        self.lm_head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        """Small embeddings and logits (first loss about ln vocab_size); the maps that write to the
        residual stream shrink with depth."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        if self.lm_head is not None:
            nn.init.normal_(self.lm_head.weight, std=0.02)
        depth_scale = (2 * self.config.num_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith(("out_proj.weight", "down_proj.weight")):
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
            input_ids: token ids, int64.
            labels: as input_ids, -100 where ignored; shifted inside, never across packed sequences.
            cache: goes on where it stands, with any number of tokens, and is updated in place.
            use_cache: return a cache; implied by `cache`.
            cu_seqlens: bounds of packed sequences; then B = 1 and a cache has N sequences.
        """
        _check_tokens(input_ids, labels)
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
        """
        states = cache.layers if cache is not None and cache.layers else [None] * len(self.blocks)
        if len(states) != len(self.blocks):
            raise ValueError(f"Atlas: cache: wanted {len(self.blocks)} layers, got {len(states)}")
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
    ) -> Tensor:  # [B, T + new]
        """The prompt and up to `max_new_tokens` new tokens, in memory that does not grow with them.

        Args:
            input_ids: the prompts, at least one token long.
            max_new_tokens: number of tokens to add.
            temperature: 0 takes the likeliest token each time.
            top_k, top_p: restrict the choice to the likeliest tokens.
            eos_token_id: a sequence that drew it is filled up with it; all done: return early.
            generator: source of randomness, on the device of the model.
        """
        check_sampling(max_new_tokens, temperature, top_k, top_p)
        _check_tokens(input_ids, None)
        if input_ids.shape[1] == 0:
            raise ValueError("generate: input_ids: wanted at least one token, got none")
        cache = AtlasCache()
        pieces, step = [input_ids], input_ids
        done = torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
        for _ in range(max_new_tokens):
            logits = self(step, cache=cache).logits[:, -1]
            token = sample_token(logits, temperature, top_k, top_p, generator)
            if eos_token_id is not None:
                token = token.masked_fill(done, eos_token_id)
                done |= token == eos_token_id
            step = token.unsqueeze(1)
            pieces.append(step)
            if eos_token_id is not None and bool(done.all()):
                break
        return torch.cat(pieces, dim=1)


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
    targets = labels[:, 1:].flatten()
    total = F.cross_entropy(scores, targets, ignore_index=IGNORED_LABEL, reduction="sum")
    return total / (targets != IGNORED_LABEL).sum().clamp(min=1)


def _check_tokens(input_ids: Tensor, labels: Tensor | None) -> None:
    if input_ids.dim() != 2 or input_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"Atlas: input_ids: wanted int64 [B, T], got {input_ids.dtype} {list(input_ids.shape)}"
        )
    if labels is not None and labels.shape != input_ids.shape:
        raise ValueError(f"Atlas: labels: wanted {list(input_ids.shape)}, got {list(labels.shape)}")


def _make_block(config: AtlasConfig) -> AtlasBlock:
    options = {name: getattr(config, name) for name in MEMORY_OPTIONS}
    memory = OmegaMemory(config.hidden_size, config.num_heads, **options)
    return AtlasBlock(
        memory, config.hidden_size, config.intermediate_size, norm_eps=config.norm_eps
    )
