"""The other tasks of MAD (Poli et al. 2024, arXiv 2403.17844)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import IGNORED, Task, distinct


@dataclass(frozen=True)
class SelectiveCopying(Task):
    """Data tokens at random places among blanks; at the end, in their order, once more.

    Tokens: data, then the blank, then the mark in whose place a data token is to be said.

    Attributes:
        copied: number of data tokens.
    """

    copied: int = 16

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        blank, mark = self.vocab_size - 2, self.vocab_size - 1
        data = torch.randint(blank, (size, self.copied), generator=generator)
        content = self.length - self.copied
        place = distinct(generator, size, content, self.copied).sort(dim=1).values
        tokens = torch.full((size, self.length), blank)
        tokens.scatter_(1, place, data)
        tokens[:, content:] = mark
        labels = torch.full_like(tokens, IGNORED)
        labels[:, content:] = data
        return tokens, labels

    def quick(self) -> SelectiveCopying:
        return replace(self, length=20, copied=4, steps=20, batch_size=8)


@dataclass(frozen=True)
class Compression(Task):
    """Random tokens, blanks, then questions for each of their places, in random order.

    MAD lets an MLP decode every token from the model's output at the last place; here the model
    itself is asked, so that its state, not one vector, must hold the sequence. An attention's state
    is the sequence.

    Tokens: data, then a question for each place, then the blank.

    Attributes:
        data: number of data tokens.
        places: of a sequence.
    """

    data: int = 16
    places: int = 16

    def __post_init__(self) -> None:
        if self.vocab_size != self.data + self.places + 1:
            wanted = f"data + places + 1 = {self.data + self.places + 1}"
            raise ValueError(f"Compression: vocab_size: wanted {wanted}, got {self.vocab_size}")
        if self.length < 2 * self.places:
            wanted = f"at least 2 * places = {2 * self.places}"
            raise ValueError(f"Compression: length: wanted {wanted}, got {self.length}")

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        data = torch.randint(self.data, (size, self.places), generator=generator)
        asked = distinct(generator, size, self.places, self.places)
        blanks = torch.full((size, self.length - 2 * self.places), self.vocab_size - 1)
        tokens = torch.cat([data, blanks, self.data + asked], dim=1)
        labels = torch.full_like(tokens, IGNORED)
        labels[:, -self.places :] = data.gather(1, asked)
        return tokens, labels

    def quick(self) -> Compression:
        return replace(self, length=12, steps=20, batch_size=8, places=4, vocab_size=self.data + 5)


@dataclass(frozen=True)
class Memorisation(Task):
    """Keys whose values are the same in every sequence and are never shown ("memorization"): after
    each key, a mark in whose place the value is to be said. Tests the weights, not the state.

    Tokens: keys, then values, then the mark.

    Attributes:
        keys: number of keys, and of values.
    """

    keys: int = 64

    def __post_init__(self) -> None:
        if self.vocab_size != 2 * self.keys + 1:
            wanted = f"2 keys + 1 = {2 * self.keys + 1}"
            raise ValueError(f"Memorisation: vocab_size: wanted {wanted}, got {self.vocab_size}")

    def dictionary(self) -> Tensor:  # [keys]
        """The value of each key."""
        source = torch.Generator().manual_seed(0)
        return torch.randint(self.keys, 2 * self.keys, (self.keys,), generator=source)

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        keys = torch.randint(self.keys, (size, self.length // 2), generator=generator)
        tokens = torch.stack([keys, torch.full_like(keys, self.vocab_size - 1)], -1).flatten(1)
        values = self.dictionary()[keys]
        labels = torch.stack([torch.full_like(keys, IGNORED), values], dim=-1).flatten(1)
        return tokens, labels

    def quick(self) -> Memorisation:
        return replace(self, length=16, steps=20, batch_size=8)
