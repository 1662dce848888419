"""Tasks with long noise: a search finds what was hidden; streams are told and resumed exactly."""

from __future__ import annotations

import pytest
import torch

from bench.quality.tasks import IGNORED, TASKS
from bench.quality.tasks.facts import TAKES, WALKS, WHERE, Facts
from bench.quality.tasks.haystack import haystack, scatter, windows
from bench.quality.tasks.needle import Needle
from bench.quality.tasks.pairs import MARK, Pairs

HIDDEN = [name for name, task in TASKS.items() if isinstance(task, (Needle, Facts))]


def complete(row: list[int], t: int) -> int | None:
    """The byte after the first earlier copy of the sentence that ends at t and starts with "@"."""
    text = bytes(row[: t + 1])
    start = text.rfind(b"\n@ the ")
    if start < 0 or b" is " not in text[start:]:
        return None
    found = text.find(text[start:])
    return None if found == start else row[found + t + 1 - start]


def place_of(task: Facts, row: list[int], t: int) -> int | None:
    """Tells the story up to t, fact by fact, and answers the question that ends there."""
    where: dict[int, int] = {}
    holder: dict[int, int] = {}
    for subject, verb, what in zip(row[:t], row[1:t], row[2:t], strict=False):
        if verb == WALKS:
            where[subject] = what
        if verb == TAKES:
            holder[what] = subject
    if t == 0 or row[t - 1] != WHERE:
        return None
    return where.get(row[t] if task.hops == 1 else holder.get(row[t], -1))


def value_of(row: list[int], t: int) -> int | None:
    """What the fact about the key at t says."""
    told = {row[i + 1]: row[i + 2] for i in range(t - 1) if row[i] == MARK}
    return told[row[t]] if t and row[t - 1] == MARK + 1 else None


def solve(task, row: list[int], t: int) -> int | None:
    if isinstance(task, Needle):
        return complete(row, t) if t >= task.length - task.symbols else None
    return place_of(task, row, t) if isinstance(task, Facts) else value_of(row, t)


def assert_search_finds_labels(task) -> None:
    tokens, labels = task.batch(torch.Generator().manual_seed(1), 4)
    assert tokens.shape == labels.shape == (4, task.length)
    assert tokens.dtype == labels.dtype == torch.int64
    assert tokens.min() >= 0 and tokens.max() < task.vocab_size
    assert (labels != IGNORED).any()
    for row, wanted in zip(tokens.tolist(), labels.tolist(), strict=True):
        found = [solve(task, row, t) for t in range(task.length)]
        assert [IGNORED if answer is None else answer for answer in found] == wanted


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", HIDDEN)
def test_a_search_finds_every_label(name: str, quick: bool) -> None:
    assert_search_finds_labels(TASKS[name].quick() if quick else TASKS[name])


@pytest.mark.parametrize("facts", [1, 8])
def test_a_search_finds_every_fact_of_a_stream(facts: int) -> None:
    assert_search_finds_labels(Pairs.of(keys=16, values=8, facts=facts, length=64))


def test_scattered_needles_are_whole_and_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    needles = 1000 + torch.arange(24).view(2, 4, 3)
    text = windows(generator, 2, 12)  # no room to spare
    assert torch.equal(scatter(generator, needles, text), needles.flatten(1))
    text = windows(generator, 2, 40)
    scattered = scatter(generator, needles, text)
    assert torch.equal(scattered[scattered >= 1000], needles.flatten())
    for row in scattered:
        place = (row >= 1000).nonzero().flatten().view(4, 3)
        assert torch.equal(place - place[:, :1], torch.arange(3).expand(4, 3))
    assert torch.equal(scattered.where(scattered < 1000, text), text)


def test_held_out_text_is_other_text() -> None:
    known, unknown = haystack(), haystack(held_out=True)
    assert len(known) > 100_000 and len(unknown) > 100_000
    piece = bytes(unknown[50_000:50_200].tolist())
    assert piece not in known.numpy().tobytes()
