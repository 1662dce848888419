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
    Questions begin where the pairs of the longest list end.

    Token 0 is the filler; then come the keys, then the values. The keys of a sequence differ.

    Attributes:
        keys, values: number of tokens of each kind.
        pairs: of a sequence; each sequence draws one of these.
    """

    keys: int = 64
    values: int = 64
    pairs: tuple[int, ...] = (16,)

    def __post_init__(self) -> None:
        if self.vocab_size != 1 + self.keys + self.values:
            raise ValueError(f"MQAR: vocab_size: wanted 1 + keys + values, got {self.vocab_size}")
        if self.length < 3 * max(self.pairs):
            raise ValueError(f"MQAR: length: wanted at least 3 * pairs, got {self.length}")

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        most = max(self.pairs)
        drawn = torch.randint(len(self.pairs), (size, 1), generator=generator)
        number = torch.arange(most)
        there = number < torch.tensor(self.pairs)[drawn]  # [B, most]
        keys = 1 + distinct(generator, size, self.keys, most)
        values = torch.randint(self.values, (size, most), generator=generator)
        values += 1 + self.keys
        pairs = torch.stack([keys, values], dim=-1) * there[..., None]
        tokens = torch.zeros(size, self.length, dtype=torch.int64)
        tokens[:, : 2 * most] = pairs.flatten(1)
        place = 2 * most + distinct(generator, size, self.length - 2 * most, most)
        labels = torch.full_like(tokens, IGNORED)
        row, column = there.nonzero(as_tuple=True)
        tokens[row, place[row, column]] = keys[row, column]
        labels[row, place[row, column]] = values[row, column]
        return tokens, labels

    def parts(self) -> dict[str, MQAR]:
        return {f"{pairs} pairs": replace(self, pairs=(pairs,)) for pairs in self.pairs}

    def quick(self) -> MQAR:
        return replace(
            self, keys=8, values=8, pairs=(1, 2), vocab_size=17, length=24, steps=20, batch_size=8
        )
