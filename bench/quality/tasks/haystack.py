"""Real text to hide things in: the sources of Python's own standard library, as bytes."""

from __future__ import annotations

import os
import sysconfig
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from .base import distinct

BYTES = 256  # token ids of the text; a task's own tokens come after them
SKIPPED_FOLDERS = {"site-packages", "dist-packages", "__pycache__"}


def _files() -> list[Path]:
    files = []
    for folder, subfolders, names in os.walk(sysconfig.get_paths()["stdlib"]):
        subfolders[:] = set(subfolders) - SKIPPED_FOLDERS  # not even looked into
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files)


@cache
def haystack(held_out: bool = False) -> Tensor:  # [n] uint8
    """The text of every other file; `held_out`: of those in between. Some 15 MB each."""
    text = b"".join(path.read_bytes() for path in _files()[held_out::2])
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)


def windows(generator: torch.Generator, size: int, length: int) -> Tensor:  # [size, length] int64
    """Pieces of the text from random places."""
    text = haystack()
    start = torch.randint(len(text) - length + 1, (size, 1), generator=generator)
    return text[start + torch.arange(length)].long()


def scatter(
    generator: torch.Generator,
    needles: Tensor,  # [B, n, width]
    text: Tensor,  # [B, T]
) -> Tensor:  # [B, T]
    """The text with the needles in their order at random places, each over `width` of its tokens;
    no two touch the same token."""
    size, count, width = needles.shape
    # places among what is left when every needle but its first token is taken away
    place = distinct(generator, size, text.shape[1] - count * (width - 1), count).sort(dim=1).values
    place = place + (width - 1) * torch.arange(count)
    place = place[..., None] + torch.arange(width)
    return text.scatter(1, place.flatten(1), needles.flatten(1))
