"""The tasks on which models are trained, by name."""

from __future__ import annotations

from .base import IGNORED, Task
from .facts import Facts
from .mad_memory import Compression, Memorisation, SelectiveCopying
from .mad_recall import FuzzyRecall, InContextRecall
from .mqar import MQAR
from .needle import Needle

__all__ = ["IGNORED", "LONG", "MAD", "TASKS", "Task"]

MAD = (
    "in-context-recall", "noisy-recall", "fuzzy-recall", "selective-copying", "compression",
    "memorisation",
)  # fmt: skip

LONG = ("needle-passkey", "needle-number", "needle-word", "facts-1", "facts-2")

SMALL = {"facts": 12, "people": 4, "things": 4, "places": 4}  # a world for short texts

# What is told in the first 16 tokens is asked for only after them where that is possible: with
# ns_every = 16 Atlas writes once in so many tokens.
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        MQAR("mqar", vocab_size=33, length=32, keys=16, values=16, pairs=(1, 2, 4, 8), steps=1000),
        InContextRecall("in-context-recall", vocab_size=16, length=64, steps=600, batch_size=8),
        InContextRecall(
            "noisy-recall", vocab_size=32, length=64, steps=600, batch_size=8, noise=0.2
        ),
        FuzzyRecall("fuzzy-recall", vocab_size=16, length=64, steps=600, batch_size=8, entries=4),
        SelectiveCopying(
            "selective-copying", vocab_size=10, length=22, steps=600, batch_size=8, copied=6
        ),
        Compression(
            "compression", vocab_size=17, length=24, steps=500, batch_size=16, data=8, places=8
        ),
        Memorisation("memorisation", vocab_size=129, length=16, steps=600, batch_size=16),
        *(
            Needle(
                f"needle-{kind}", vocab_size=256, length=64, steps=1500, batch_size=16, kind=kind
            )
            for kind in ("passkey", "number", "word")
        ),
        Facts("facts-1", vocab_size=271, length=64, steps=1500, batch_size=16, hops=1, **SMALL),
        Facts("facts-2", vocab_size=271, length=64, steps=1500, batch_size=16, hops=2, **SMALL),
    )
}
