"""The tasks on which models are trained, by name."""

from __future__ import annotations

from .base import IGNORED, Task
from .facts import Facts
from .mad_memory import Compression, Memorisation, SelectiveCopying
from .mad_recall import FuzzyRecall, InContextRecall
from .mqar import MQAR
from .needle import Needle

__all__ = ["IGNORED", "MAD", "TASKS", "Task"]

MAD = (
    "in-context-recall", "noisy-recall", "fuzzy-recall", "selective-copying", "compression",
    "memorisation",
)  # fmt: skip

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        MQAR("mqar", vocab_size=33, length=32, keys=16, values=16, pairs=(1, 2, 4, 8), steps=1000),
        InContextRecall("in-context-recall", vocab_size=16, length=64, steps=300),
        InContextRecall("noisy-recall", vocab_size=32, length=64, steps=300, noise=0.2),
        FuzzyRecall("fuzzy-recall", vocab_size=16, length=64, entries=4, steps=300),
        SelectiveCopying("selective-copying", vocab_size=18, length=64, copied=8, steps=300),
        Compression("compression", vocab_size=32, length=32, steps=300),
        Memorisation("memorisation", vocab_size=129, length=32, steps=300),
        Needle("needle-passkey", vocab_size=256, length=256, steps=400, kind="passkey"),
        Needle("needle-number", vocab_size=256, length=256, steps=400, kind="number"),
        Needle("needle-word", vocab_size=256, length=256, steps=400, kind="word"),
        Facts("facts-1", vocab_size=283, length=256, steps=400, hops=1),
        Facts("facts-2", vocab_size=283, length=256, steps=400, hops=2),
    )
}
