"""Facts that are to be kept through a long text."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import IGNORED, Task, distinct
from .haystack import BYTES, scatter, windows

MARK, ASK = BYTES, BYTES + 1
FACT, QUESTION = 3, 2  # tokens: mark, key, value; ask, key
FIRST_KEY = BYTES + 2


@dataclass(frozen=True)
class Pairs(Task):
    """Facts "mark, key, value" at random places of a text, bytes of Python's standard library;
    then every key is asked for once, "ask, key", in random order, and the model must say its value.

    Keys and values are tokens of their own; the keys of a sequence differ.

    Attributes:
        keys, values: number of tokens of each kind.
        facts: of a sequence.
    """

    keys: int = 128
    values: int = 32
    facts: int = 64

    def __post_init__(self) -> None:
        if self.vocab_size != FIRST_KEY + self.keys + self.values:
            wanted = f"{FIRST_KEY} + keys + values"
            raise ValueError(f"Pairs: vocab_size: wanted {wanted}, got {self.vocab_size}")
        if not 0 < self.facts <= self.keys:
            raise ValueError(f"Pairs: facts: wanted 1 to keys = {self.keys}, got {self.facts}")
        if self.length < (FACT + QUESTION) * self.facts:
            wanted = f"at least {FACT + QUESTION} * facts"
            raise ValueError(f"Pairs: length: wanted {wanted}, got {self.length}")

    @classmethod
    def of(cls, *, keys: int, values: int, facts: int, length: int, **options: int) -> Pairs:
        """The task with the vocabulary that its keys and values need."""
        size = FIRST_KEY + keys + values
        return cls("pairs", size, length, keys=keys, values=values, facts=facts, **options)

    @property
    def first_value(self) -> int:
        return FIRST_KEY + self.keys

    def tell(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        """New facts: keys and values, tokens, both [size, facts]."""
        keys = FIRST_KEY + distinct(generator, size, self.keys, self.facts)
        values = torch.randint(self.values, (size, self.facts), generator=generator)
        return keys, self.first_value + values

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        keys, values = self.tell(generator, size)
        body = self.length - QUESTION * self.facts
        text = windows(generator, size, body)
        order = distinct(generator, size, self.facts, self.facts)
        questions = ask(keys.gather(1, order))
        tokens = torch.cat([scatter(generator, facts_of(keys, values), text), questions], dim=1)
        labels = torch.full_like(tokens, IGNORED)
        labels[:, body + 1 :: QUESTION] = values.gather(1, order)
        return tokens, labels

    def quick(self) -> Pairs:
        return replace(self, facts=4, length=32, steps=20, batch_size=8)

    def stage(self, facts: int, length: int) -> Pairs:
        """The same tokens with other facts and length: a stage of a curriculum."""
        return replace(self, facts=facts, length=length)


def facts_of(keys: Tensor, values: Tensor) -> Tensor:  # [B, n] -> [B, n, 3]
    return torch.stack([torch.full_like(keys, MARK), keys, values], dim=-1)


def ask(keys: Tensor) -> Tensor:  # [B, n] -> [B, 2 n]
    """The questions, one after the other; each is answered at its second token."""
    return torch.stack([torch.full_like(keys, ASK), keys], dim=-1).flatten(1)
