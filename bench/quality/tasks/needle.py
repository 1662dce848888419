"""A needle in a haystack."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .base import IGNORED, Task
from .haystack import BYTES, scatter, windows

KEYS = 16  # letters that a needle can be named by
SYMBOLS = {"passkey": b"0123456789", "number": b"0123456789", "word": b"abcdefghijklmnop"}


@dataclass(frozen=True)
class Needle(Task):
    """One sentence at a random place in real text; the model must complete it at the end (S-NIAH of
    RULER, Hsieh et al. 2024, arXiv 2404.06654, the three tasks of the paper's table on it, with
    shorter sentences). All is bytes, and only the answer is scored.

    "passkey": the sentence is always the same, and the answer has digits; "number": the sentence
    has a name that differs from one sequence to the next; "word": so it has, and the answer has
    letters, as the text around it does.

    Attributes:
        kind: "passkey", "number" or "word".
        symbols: bytes of the answer.
        lengths: of the parts, on which a model is tested that was trained on `length`.
    """

    kind: str = "passkey"
    symbols: int = 4
    lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)

    def __post_init__(self) -> None:
        if self.kind not in SYMBOLS:
            raise ValueError(f"Needle: kind: wanted one of {', '.join(SYMBOLS)}, got {self.kind!r}")
        if self.vocab_size != BYTES:
            raise ValueError(f"Needle: vocab_size: wanted {BYTES}, got {self.vocab_size}")

    def batch(self, generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
        alphabet = torch.tensor(list(SYMBOLS[self.kind]))
        drawn = torch.randint(len(alphabet), (size, self.symbols), generator=generator)
        answer = alphabet[drawn]
        opening = self._opening(generator, size)
        needle = torch.cat([opening, answer, torch.full((size, 1), ord("\n"))], dim=1)
        # the question is the sentence itself, up to the answer's last byte, which is asked only
        question = torch.cat([opening, answer[:, :-1]], dim=1)
        text = windows(generator, size, self.length - question.shape[1])
        tokens = torch.cat([scatter(generator, needle[:, None], text), question], dim=1)
        labels = torch.full_like(tokens, IGNORED)
        labels[:, -self.symbols :] = answer
        return tokens, labels

    def _opening(self, generator: torch.Generator, size: int) -> Tensor:  # [B, n]
        """The sentence up to the answer: "\\n@ the passkey is ", "\\n@ the number b is "."""
        name = torch.randint(KEYS, (size, 1), generator=generator) + ord("a")
        pieces = [b"\n@ the " + self.kind.encode(), b" is "]
        first, second = (torch.tensor(list(piece)).expand(size, -1) for piece in pieces)
        if self.kind == "passkey":
            return torch.cat([first, second], dim=1)
        return torch.cat([first, torch.full((size, 1), ord(" ")), name, second], dim=1)

    def parts(self) -> dict[str, Needle]:
        return {f"{length} tokens": replace(self, length=length) for length in self.lengths}

    def quick(self) -> Needle:
        return replace(self, length=64, lengths=(64, 128), steps=20, batch_size=8)
