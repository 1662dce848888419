"""Tasks with long noise: a search finds what was hidden; streams are told and resumed exactly."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from searched_task import assert_search_finds_labels

from atlas_ext.models import Atlas, AtlasCache, AtlasConfig
from bench.quality import stream, stream_report
from bench.quality.tasks import TASKS
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
    return told.get(row[t]) if t and row[t - 1] == MARK + 1 else None


def solve(task, row: list[int], t: int) -> int | None:
    if isinstance(task, Needle):
        return complete(row, t) if t >= task.length - task.symbols else None
    return place_of(task, row, t) if isinstance(task, Facts) else value_of(row, t)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", HIDDEN)
def test_a_search_finds_every_label(name: str, quick: bool) -> None:
    assert_search_finds_labels(TASKS[name].quick() if quick else TASKS[name], solve)


@pytest.mark.parametrize("facts", [1, 8])
def test_a_search_finds_every_fact_of_a_stream(facts: int) -> None:
    assert_search_finds_labels(Pairs.of(keys=16, values=8, facts=facts, length=64), solve)


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


def small_stream() -> tuple[Pairs, stream.Stream]:
    task = Pairs.of(keys=32, values=8, facts=6, length=64)
    return task, stream.Stream(task, seed=3, begin=48)


def test_a_stream_is_the_same_in_any_pieces() -> None:
    task, one = small_stream()
    whole = one.read(0, 200)
    assert torch.equal(torch.cat([one.read(0, 7), one.read(7, 60), one.read(60, 200)], 1), whole)
    place = (whole[0] == MARK).nonzero().flatten()
    assert len(place) == task.facts and place.max() < 48
    assert torch.equal(whole[0, place + 1], one.keys[0])
    assert torch.equal(whole[0, place + 2], one.values[0])
    assert not set(one.keys[0].tolist()) & set(one.fresh_keys[0].tolist())


def small_model(task: Pairs, name: str = "sparse-writes") -> Atlas:
    torch.manual_seed(0)
    return Atlas(AtlasConfig(vocab_size=task.vocab_size, **stream.MODELS[name].config))


def test_an_interrupted_run_goes_on_exactly(tmp_path: Path) -> None:
    task, told = small_stream()
    model = small_model(task)
    at_once = stream.listen(model, told, (48, 100, 150), tmp_path / "a.pt", "")
    stream.listen(model, told, (48, 100), tmp_path / "b.pt", "")
    resumed = stream.listen(model, told, (48, 100, 150), tmp_path / "b.pt", "")
    assert [record["tokens"] for record in resumed] == [48, 100, 150]
    for name in ("right", "fresh_right", "cache_bytes"):
        assert [r[name] for r in resumed] == [r[name] for r in at_once]
    first, second = (torch.load(tmp_path / f"{name}.pt")["cache"] for name in "ab")
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_examining_leaves_the_state_alone() -> None:
    task, told = small_stream()
    model, cache = small_model(task), AtlasCache()
    with torch.inference_mode():
        model.encode(model.embedding(told.read(0, 48)), cache)
        before = cache.clone().state_dict()
        stream.examine(model, told, cache)
    for name, tensor in cache.state_dict().items():
        assert torch.equal(tensor, before[name]), name


class Oracle:
    """Says the value that followed a key's mark; its "cache" is the list of tokens."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def embedding(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def encode(self, tokens: torch.Tensor, cache: OracleCache) -> torch.Tensor:
        start = len(cache.tokens)
        cache.tokens += tokens[0].tolist()
        found = [value_of(cache.tokens, t) or 0 for t in range(start, len(cache.tokens))]
        return torch.tensor([found])

    def compute_logits(self, answers: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(answers, self.vocab_size)


class OracleCache:
    num_bytes = 0

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def clone(self) -> OracleCache:
        return OracleCache(list(self.tokens))


def test_who_remembers_everything_has_all_answers_right() -> None:
    task, told = small_stream()
    cache = OracleCache(told.read(0, 90)[0].tolist())
    record = stream.examine(Oracle(task.vocab_size), told, cache)
    assert record["right"] == record["facts"] == 6
    assert record["fresh_right"] == record["fresh"] == stream.FRESH
    lost = stream.examine(Oracle(task.vocab_size), told, OracleCache([]))
    assert lost["right"] == 0 and lost["fresh_right"] == stream.FRESH


def test_spread_of_writes_counts_tokens_and_not_sizes() -> None:
    task, _ = small_stream()
    model = small_model(task)
    memory = model.blocks[0].memory
    x = torch.nn.functional.one_hot(torch.arange(32), 64)[None].float()
    with torch.no_grad():
        memory.gates.weight.zero_()
        everywhere = stream.spread_of_writes(model, x)
        torch.testing.assert_close(everywhere, torch.log1p(torch.tensor(1 / stream.FLOOR)))
        memory.step_size *= 1e-3  # all writes alike smaller
        torch.testing.assert_close(stream.spread_of_writes(model, x), everywhere)
        eta = memory.num_heads * memory.window  # the gates of eta come after those of gamma
        memory.gates.bias[eta : eta + memory.num_heads] = -40.0
        memory.gates.weight[eta : eta + memory.num_heads, 5] = 10.0  # only token 5 writes
        torch.testing.assert_close(stream.spread_of_writes(model, x), everywhere / 32)


def test_the_page_is_made_from_the_committed_results() -> None:
    page = (stream_report.DOCS / "results_streams.md").read_text()
    found = stream_report.load(stream.RESULTS, tuple(stream.MODELS))
    assert found and stream_report.fill(page, stream_report.sections(found)) == page


def test_program_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(stream_report.DOCS / "results_streams.md", tmp_path)
    results = tmp_path / "results"
    options = ["--results", str(results), "--docs", str(tmp_path)]
    program = [*options, "--work", str(tmp_path / "work"), "--quick", "--seeds", "2"]
    stream.main(program)
    said = capsys.readouterr().out
    runs = [f"{name}-{seed}" for name in stream.MODELS for seed in range(2)]
    assert all(said.count(run) == 2 for run in runs)
    before = {path.stem: path.read_text() for path in results.iterdir()}
    assert sorted(before) == sorted(runs)
    stream.main(program)  # nothing is run again
    assert {path.stem: path.read_text() for path in results.iterdir()} == before
    stream.main([*options, "--report"])
    page = (tmp_path / "results_streams.md").read_text()
    for name in stream.MODELS:
        assert f"| {name} | 128 |" in page and f"| {name}-1 |" in page
    assert (tmp_path / "images" / "streams.png").stat().st_size > 10_000
