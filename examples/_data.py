"""The text: which files, what is held out, batches, and a byte-bigram baseline."""

from __future__ import annotations

import math
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

HELD_OUT_EVERY = 20  # one file in so many is held out; fewer files: the last part of each
# tests, tables, generated text and what is not the library's own
SKIPPED_FOLDERS = {
    "test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "encodings",
    "pydoc_data", "lib2to3", "ensurepip", "turtledemo",
}  # fmt: skip


@dataclass(frozen=True)
class Text:
    """Bytes to train on and bytes held out, and where they come from."""

    training: Tensor  # [n] uint8
    held_out: Tensor  # [m] uint8
    source: str


def standard_library_files() -> list[Path]:
    """Python sources of the running interpreter's standard library, in a fixed order."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
    ]


def load_text(files: list[str] | None) -> Text:
    """Reads the files given, or the standard library; exits with a sentence if one cannot be read.

    Every 20th file is held out; with fewer files than that, the last 1/20 of each.
    """
    paths = [Path(name) for name in files] if files else standard_library_files()
    try:
        contents = [path.read_bytes() for path in paths]
    except OSError as error:
        raise SystemExit(f"Cannot read {error.filename}: {error.strerror}.") from None
    if len(contents) >= HELD_OUT_EVERY:
        held_out = contents[::HELD_OUT_EVERY]
        training = [text for i, text in enumerate(contents) if i % HELD_OUT_EVERY]
    else:
        cuts = [len(text) - len(text) // HELD_OUT_EVERY for text in contents]
        held_out = [text[cut:] for text, cut in zip(contents, cuts, strict=True)]
        training = [text[:cut] for text, cut in zip(contents, cuts, strict=True)]
    kind = f"{len(paths)} files given with --data"
    if not files:
        kind = f"{len(paths)} files of Python's own standard library"
    return Text(_to_tensor(training), _to_tensor(held_out), kind)


def _to_tensor(pieces: list[bytes]) -> Tensor:
    joined = bytearray(b"".join(pieces))
    return torch.frombuffer(joined, dtype=torch.uint8) if joined else torch.empty(0).byte()


def check_length(text: Text, window: int) -> None:
    """Exits with a sentence when a window does not fit into either part."""
    for name, part in (("training", text.training), ("held-out", text.held_out)):
        if len(part) <= window:
            raise SystemExit(
                f"The {name} text ({text.source}) has {len(part)} bytes; a window needs more than "
                f"{window}. Give more text with --data FILE..., or a smaller --seq-len."
            )


def training_batch(text: Text, step: int, batch: int, length: int, seed: int) -> Tensor:
    """Batch number `step`, [batch, length] int64: a function of seed and step alone, so that a
    resumed run sees what an uninterrupted one sees."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    starts = torch.randint(len(text.training) - length + 1, (batch, 1), generator=generator)
    return text.training[starts + torch.arange(length)].long()


def held_out_windows(text: Text, count: int, length: int) -> Tensor:
    """Up to `count` windows [n, length] int64, spread evenly over the held-out bytes."""
    count = min(count, len(text.held_out) // length)
    starts = torch.linspace(0, len(text.held_out) - length, count).long().unsqueeze(1)
    return text.held_out[starts + torch.arange(length)].long()


def bigram_bits_per_byte(text: Text, windows: Tensor) -> float:
    """Held-out bits per byte of a byte bigram model fitted on all training bytes.

    Smoothed towards the byte frequencies, themselves with one count added:
    p(b | a) = (count(a, b) + p(b)) / (count(a) + 1). Scores the bytes that a model scores: all of a
    window but its first.
    """
    pairs = text.training[:-1].long() * 256 + text.training[1:].long()
    counts = torch.bincount(pairs, minlength=256 * 256).view(256, 256).double()
    frequency = torch.bincount(text.training.long(), minlength=256).double() + 1
    frequency /= frequency.sum()
    probability = (counts + frequency) / (counts.sum(1, keepdim=True) + 1)
    scored = probability[windows[:, :-1], windows[:, 1:]]
    return float(-scored.log().mean()) / math.log(2)
