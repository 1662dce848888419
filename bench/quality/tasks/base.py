"""What a task is: a source of fresh token sequences with the answers that are scored."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

IGNORED = -100  # label of a position that is not scored

Self = TypeVar("Self", bound="Task")


@dataclass(frozen=True)
class Task(ABC):
    """A synthetic sequence task; every batch is new, so there is no training set to memorise.

    Attributes:
        name: key of the registry.
        vocab_size: number of token ids.
        length: T, tokens in a sequence.
        steps, batch_size: of a training run.
    """

    name: str
    vocab_size: int
    length: int
    steps: int = 1000
    batch_size: int = 32

    @abstractmethod
    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        """Tokens and labels, int64 [size, T]; the logits at t must predict the label at t, which is
        -100 where nothing is scored."""

    def parts(self) -> dict[str, Task]:
        """Tasks of its own kind, easier and harder, on which a trained model is tested besides."""
        return {}

    @abstractmethod
    def quick(self: Self) -> Self:
        """The same task, small enough for a test of the program."""


def distinct(
    generator: torch.Generator, size: int, choices: int, count: int
) -> Tensor:  # [size, count] int64
    """In each row, `count` different numbers below `choices`, in random order."""
    return torch.rand(size, choices, generator=generator).argsort(dim=1)[:, :count]
