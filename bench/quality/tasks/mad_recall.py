"""The recall tasks of MAD (Poli et al. 2024, arXiv 2403.17844)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import IGNORED, Task, distinct


def seen_before(x: Tensor) -> Tensor:  # [B, N] -> [B, N] bool
    """Where an earlier entry of the row is the same."""
    return (x[:, :, None] == x[:, None, :]).tril(diagonal=-1).any(dim=-1)


@dataclass(frozen=True)
class InContextRecall(Task):
    """Pairs of a key and its value, drawn with replacement; each sequence has values of its own.
    Scored is the value of every key that was seen before ("in-context recall", "multi-query").

    Tokens: keys, then values, then as many noise tokens as there are.

    Attributes:
        keys, values: number of tokens of each kind.
        noise: share of the pairs in whose place two noise tokens stand ("noisy in-context recall").
    """

    keys: int = 8
    values: int = 8
    noise: float = 0.0

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        count = self.length // 2
        first_noise = self.keys + self.values
        keys = torch.randint(self.keys, (size, count), generator=generator)
        meaning = torch.randint(self.keys, first_noise, (size, self.keys), generator=generator)
        values = meaning.gather(1, keys)
        known = seen_before(keys)
        if self.noise:
            noisy = torch.rand(size, count, generator=generator) < self.noise
            # a noisy place holds a key of its own kind, so that it makes no key known
            known = seen_before(keys.masked_fill(noisy, -1)) & ~noisy
            drawn = torch.randint(
                first_noise, self.vocab_size, (2, size, count), generator=generator
            )
            keys, values = (
                torch.where(noisy, noise, real)
                for noise, real in zip(drawn, (keys, values), strict=True)
            )
        tokens = torch.stack([keys, values], dim=-1).flatten(1)
        labels = torch.full_like(tokens, IGNORED)
        labels[:, ::2] = values.where(known, IGNORED)
        return tokens, labels

    def quick(self) -> InContextRecall:
        return replace(self, length=16, steps=20, batch_size=8)


@dataclass(frozen=True)
class FuzzyRecall(Task):
    """In-context recall where a key and a value are several tokens each ("fuzzy in-context
    recall"); all tokens of the value are scored. Keys share tokens, so that only the whole says
    which value is meant. MAD varies the lengths; here they are fixed, and every answer is certain.

    Attributes:
        keys, values: number of tokens of each kind.
        motif: tokens of a key, and of a value.
        entries: different keys of a sequence.
    """

    keys: int = 8
    values: int = 8
    motif: int = 2
    entries: int = 8

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        count = self.length // (2 * self.motif)
        numbers = distinct(generator, size, self.keys**self.motif, self.entries)
        places = self.keys ** torch.arange(self.motif)
        keys = numbers[..., None] // places % self.keys  # [B, entries, motif]
        values = torch.randint(self.keys, self.keys + self.values, keys.shape, generator=generator)
        entry = torch.randint(self.entries, (size, count), generator=generator)
        row = torch.arange(size)[:, None]
        tokens = torch.stack([keys[row, entry], values[row, entry]], dim=2)
        known = seen_before(entry)[..., None]
        labels = torch.full_like(tokens, IGNORED).flatten(2)
        # the last token of the key predicts the first of the value
        answer = slice(self.motif - 1, 2 * self.motif - 1)
        labels[..., answer] = values[row, entry].where(known, IGNORED)
        return tokens.flatten(1), labels.flatten(1)

    def quick(self) -> FuzzyRecall:
        return replace(self, length=32, entries=3, steps=20, batch_size=8)
