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
from bench.cases.base import SIZES, Case, Rival, Shape
from bench.setting import Setting
from bench.timing import DECODE, Call

PIECE = 4096  # tokens of the context that the model takes at a time
VOCABULARY = 256
CONTEXTS = (1024, 8192, 65536)
WITH_NEWTON_SCHULZ = 5e-4  # relative error of logits


@dataclass(frozen=True, kw_only=True)
class DecodeCase(Case):
    """`tokens` greedy steps after a context of `shape.length` tokens, in float32."""

    preset: str
    tokens: int
    overrides: dict[str, Any] = field(default_factory=dict)
    device: str = "cpu"
    directions: tuple[str, ...] = (DECODE,)
    dtypes: tuple[str, ...] | None = ("float32",)

    @property
    def gates(self) -> tuple[str, ...]:
        return ("omega_rule", self.op)

    @functools.cached_property
    def model(self) -> Atlas:
        torch.manual_seed(0)
        config = AtlasConfig.preset(self.preset, vocab_size=VOCABULARY, **self.overrides)
        return Atlas(config).requires_grad_(False).to(self.device)

    @functools.cached_property
    def _caches(self) -> dict[int, AtlasCache]:
        return {}

    def text(self, length: int) -> Tensor:  # [1, length]
        generator = torch.Generator().manual_seed(length)
        return torch.randint(VOCABULARY, (1, length), generator=generator).to(self.device)

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
        token = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
        for _ in range(self.tokens):
            fed.append(token)
            logits.append(model(token, cache=cache).logits)
            token = logits[-1].argmax(-1)
        return torch.cat(fed, 1), torch.cat(logits, 1)

    def errors(self, setting: Setting) -> tuple[dict[str, float], float]:
        """Decoding against one pass over the same tokens: of the reference in float64 where the
        context is short, of our own operator after the full context."""
        context = self.text(self.model.config.chunk_size // 2)
        cache = AtlasCache()
        with torch.no_grad():
            self.model(context, cache=cache)
            fed, logits = self.decode(self.model, cache)
            wide = Atlas(self.model.config).double().to(self.device)
            wide.load_state_dict(self.model.state_dict())
            rule = atlas_ext.reference.omega_rule
            with mock.patch.object(omega_memory, "omega_rule", rule):
                expected = wide(torch.cat([context, fed], 1)).logits[:, context.shape[1] :]
            errors = {"logits": relative_error(logits, expected)}
            fed, logits = self.decode(self.model, self.cache_after(self.shape.length))
            one_pass = self.model(fed, cache=self.cache_after(self.shape.length)).logits
        errors |= {"full size": relative_error(logits, one_pass)}
        return errors, WITH_NEWTON_SCHULZ

    def call(self, rival: Rival | None, direction: str, setting: Setting) -> Call:
        self.cache_after(self.shape.length)

        def call() -> None:  # copying the cache belongs to it, for all contexts alike
            self.decode(self.model, self.cache_after(self.shape.length))

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


def cases(device: str) -> list[Case]:
    if device == "emulated":
        return []  # the layer keeps to the native operators
    return [
        DecodeCase(
            op="omega_rule_update",
            family="in atlas-tiny, 64 tokens decoded, batch 1",
            size=size,
            shape=Shape(context, 1, 8),
            unit="context ",
            rivals=(),
            preset="atlas-tiny",
            tokens=64,
            device=device,
        )
        for size, context in zip(SIZES, CONTEXTS, strict=True)
    ]
