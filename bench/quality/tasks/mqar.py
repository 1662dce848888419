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
        pairs: of a sequence; each sequence draws one of these.
        asked_from: first place of a question, so that short lists are not asked sooner.
    """

    keys: int = 64
    values: int = 64
    pairs: tuple[int, ...] = (8,)
    asked_from: int = 16

    def __post_init__(self) -> None:
        if self.vocab_size != 1 + self.keys + self.values:
            raise ValueError(f"MQAR: vocab_size: wanted 1 + keys + values, got {self.vocab_size}")
        if self.asked_from < 2 * max(self.pairs):
            raise ValueError(f"MQAR: asked_from: wanted at least 2 * pairs, got {self.asked_from}")
        if self.length < self.asked_from + max(self.pairs):
            raise ValueError(f"MQAR: length: wanted asked_from + pairs or more, got {self.length}")

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
        place = self.asked_from + distinct(generator, size, self.length - self.asked_from, most)
        labels = torch.full_like(tokens, IGNORED)
        row, column = there.nonzero(as_tuple=True)
        tokens[row, place[row, column]] = keys[row, column]
        labels[row, place[row, column]] = values[row, column]
        return tokens, labels

    def parts(self) -> dict[str, MQAR]:
        return {f"{pairs} pairs": replace(self, pairs=(pairs,)) for pairs in self.pairs}

    def quick(self) -> MQAR:
        return replace(
            self, keys=8, values=8, pairs=(1, 2), asked_from=4, vocab_size=17, length=24, steps=20,
            batch_size=8,
        )  # fmt: skip
