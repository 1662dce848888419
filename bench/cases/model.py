"""Decoding with a whole model: tokens per second, and whether they depend on the context."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import atlas_ext.reference
from atlas_ext.layers import omega_memory
from atlas_ext.models import Atlas, AtlasCache, AtlasConfig
from atlas_ext.testing import relative_error
from bench import roofline
from bench.cases.base import WITH_NEWTON_SCHULZ, Case, Rival, missing_kernels, missing_option
from bench.timing import DIRECTIONS, Call

PIECE = 4096  # tokens of the context that the model takes at a time
VOCABULARY = 256


@dataclass(frozen=True, kw_only=True)
class DecodeCase(Case):
    """`tokens` greedy steps after `context` tokens. A rival's `length` is its context."""

    preset: str
    context: int
    tokens: int
    overrides: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def model(self) -> Atlas:
        torch.manual_seed(0)
        config = AtlasConfig.preset(self.preset, vocab_size=VOCABULARY, **self.overrides)
        return Atlas(config).requires_grad_(False)

    @functools.cached_property
    def _caches(self) -> dict[int, AtlasCache]:
        return {}

    def text(self, length: int) -> Tensor:  # [1, length]
        generator = torch.Generator().manual_seed(length)
        return torch.randint(VOCABULARY, (1, length), generator=generator)

    def cache_after(self, context: int) -> AtlasCache:
        """A copy: the context itself is read once only, outside of what is timed."""
        if context not in self._caches:
            cache = AtlasCache()
            with torch.no_grad():
                for piece in self.text(context).split(PIECE, dim=1):
                    self.model(piece, cache=cache)
            self._caches[context] = cache
        return self._caches[context].clone()

    @torch.no_grad()
    def decode(self, model: Atlas, cache: AtlasCache) -> tuple[Tensor, Tensor]:
        """The tokens that were fed, [1, tokens], and the logits they gave."""
        fed, logits = [], []
        token = torch.zeros(1, 1, dtype=torch.int64)
        for _ in range(self.tokens):
            fed.append(token)
            logits.append(model(token, cache=cache).logits)
            token = logits[-1].argmax(-1)
        return torch.cat(fed, 1), torch.cat(logits, 1)

    @functools.cached_property
    def missing(self) -> str | None:  # type: ignore[override]
        for op in ("omega_rule", "omega_rule_update"):
            if reason := missing_kernels(op, (f"atlas_ext::{op}",)):
                return reason
        return missing_option(lambda: self.cache_after(1))

    def errors(self) -> dict[str, float]:
        """Decoding against one pass over the same tokens: of the reference in float64 where the
        context is short, of our own operator after the full context."""
        context = self.text(self.model.config.chunk_size // 2)
        cache = AtlasCache()
        with torch.no_grad():
            self.model(context, cache=cache)
            fed, logits = self.decode(self.model, cache)
            wide = Atlas(self.model.config).double()
            wide.load_state_dict(self.model.state_dict())
            rule = atlas_ext.reference.omega_rule
            with mock.patch.object(omega_memory, "omega_rule", rule):
                expected = wide(torch.cat([context, fed], 1)).logits[:, context.shape[1] :]
            errors = {"logits": relative_error(logits, expected)}
            fed, logits = self.decode(self.model, self.cache_after(self.context))
            one_pass = self.model(fed, cache=self.cache_after(self.context)).logits
        return errors | {"full size": relative_error(logits, one_pass)}

    def call(self, rival: Rival | None, direction: str, length: int | None = None) -> Call:
        context = length or (rival.length if rival is not None else None) or self.context
        self.cache_after(context)

        def call() -> None:  # copying the cache belongs to it, for both contexts alike
            self.decode(self.model, self.cache_after(context))

        return call

    def flops(self, direction: str) -> float:
        config = self.model.config
        matrices = [w for block in self.model.blocks for w in block.memory.memory_weights]
        shapes = [tuple(w.shape[1:]) for w in matrices]
        memories = roofline.omega_rule_update_flops(
            1, config.num_heads, shapes[: len(shapes) // config.num_layers], config.window,
            config.ns_steps, config.ns_every,
        )  # fmt: skip
        others = sum(
            m.weight.numel() for m in self.model.modules() if isinstance(m, torch.nn.Linear)
        )
        return self.tokens * (config.num_layers * memories + 2.0 * others)


CASES = (
    DecodeCase(
        name="decode 64 tokens, atlas-tiny, context 65536",
        op="omega_rule_update",
        rivals=(
            Rival("ours, context 1024", length=1024, targets=(1.1, None), at_most=True, peak=False),
        ),
        directions=DIRECTIONS[:1],
        tolerance=WITH_NEWTON_SCHULZ,
        preset="atlas-tiny",
        context=65536,
        tokens=64,
    ),
)
