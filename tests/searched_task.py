"""A task's labels beside the answers that a search through its tokens finds."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bench.quality.tasks import IGNORED, Task


def assert_search_finds_labels(task: Task, solve: Callable[[Task, list[int], int], int | None]):
    """`solve` gives the answer at t from a row; None: there is nothing to say."""
    tokens, labels = task.batch(torch.Generator().manual_seed(1), 4)
    assert tokens.shape == labels.shape == (4, task.length)
    assert tokens.dtype == labels.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < task.vocab_size
    assert (labels != IGNORED).any()
    for row, wanted in zip(tokens.tolist(), labels.tolist(), strict=True):
        found = [solve(task, row, t) for t in range(task.length)]
        assert [IGNORED if answer is None else answer for answer in found] == wanted
