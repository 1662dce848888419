"""Multi-query associative recall."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import IGNORED, Task, distinct


@dataclass(frozen=True)
class MQAR(Task):
    """Key-value pairs first, then each key once more, at random places among filler tokens; there
    the model must say its value (Arora et al. 2023, arXiv 2312.04927, appendix; uniform gaps).

    Token 0 is the filler; then come the keys, then the values. The keys of a sequence differ.

    Attributes:
        keys, values: number of tokens of each kind.
        pairs: of a sequence.
    """

    keys: int = 64
    values: int = 64
    pairs: int = 16

    def __post_init__(self) -> None:
        if self.vocab_size != 1 + self.keys + self.values:
            raise ValueError(f"MQAR: vocab_size: wanted 1 + keys + values, got {self.vocab_size}")
        if self.length < 3 * self.pairs:
            raise ValueError(f"MQAR: length: wanted at least 3 * pairs, got {self.length}")

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        keys = 1 + distinct(generator, size, self.keys, self.pairs)
        values = torch.randint(self.values, (size, self.pairs), generator=generator)
        values += 1 + self.keys
        tokens = torch.zeros(size, self.length, dtype=torch.int64)
        tokens[:, 0 : 2 * self.pairs : 2] = keys
        tokens[:, 1 : 2 * self.pairs : 2] = values
        free = self.length - 2 * self.pairs
        place = 2 * self.pairs + distinct(generator, size, free, self.pairs)
        tokens.scatter_(1, place, keys)
        labels = torch.full_like(tokens, IGNORED).scatter_(1, place, values)
        return tokens, labels

    def quick(self) -> MQAR:
        return replace(
            self, keys=8, values=8, pairs=2, vocab_size=17, length=12, steps=20, batch_size=8
        )
