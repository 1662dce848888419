"""The quality benchmarks: tasks have the right answers, models one size, runs are kept."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from searched_task import assert_search_finds_labels
from torch import Tensor

from bench.quality import __main__ as program
from bench.quality import calibration, models, rates, training
from bench.quality.tasks import IGNORED, LONG, MAD, TASKS
from bench.quality.tasks.mad_memory import Memorisation, SelectiveCopying
from bench.quality.tasks.mad_recall import FuzzyRecall, InContextRecall
from bench.quality.tasks.mqar import MQAR

SEARCHED = (
    "mqar", "in-context-recall", "noisy-recall", "fuzzy-recall", "selective-copying",
    "compression", "memorisation",
)  # fmt: skip


def recall(row: list[int], t: int, key: int, value: int, before: int) -> list[int]:
    """What followed the last earlier copy of the `key` tokens that end at t, `before` at most."""
    asked = row[t - key + 1 : t + 1]
    for start in range(before - key, -1, -1):
        if row[start : start + key] == asked:
            return row[start + key : start + key + value]
    return []


def solve(task, row: list[int], t: int) -> int | None:
    """The answer at t from the tokens up to t, found by search; None: there is nothing to say."""
    past = row[: t + 1]
    if isinstance(task, MQAR):
        is_key = 1 <= row[t] <= task.keys
        return (recall(row, t, 1, 1, t) or [None])[0] if is_key else None
    if isinstance(task, InContextRecall):
        is_key = row[t] < task.keys
        return (recall(row, t, 1, 1, t) or [None])[0] if is_key else None
    if isinstance(task, FuzzyRecall):
        motif = task.motif
        place = t % (2 * motif) - (motif - 1)  # in the value that is to be said
        if not 0 <= place < motif:
            return None
        start = t - t % (2 * motif)
        value = recall(row, start + motif - 1, motif, motif, start)
        return value[place] if value else None
    if isinstance(task, SelectiveCopying):
        blank, mark = task.vocab_size - 2, task.vocab_size - 1
        said = past.count(mark)
        return [token for token in past if token < blank][said - 1] if said else None
    if isinstance(task, Memorisation):
        odd = t % 2 == 1
        return int(task.dictionary()[row[t - 1]]) if odd else None
    # Compression
    return row[row[t] - task.data] if task.data <= row[t] < task.vocab_size - 1 else None


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("name", SEARCHED)
def test_a_search_finds_every_label(name: str, quick: bool) -> None:
    task = TASKS[name].quick() if quick else TASKS[name]
    assert_search_finds_labels(task, solve)
    _, labels = task.batch(torch.Generator().manual_seed(1), 4)
    assert (labels != IGNORED).any(dim=1).all()
    if isinstance(task, MQAR):
        assert {*(labels != IGNORED).sum(dim=1).tolist()} <= {*task.pairs}


def test_parts_of_a_task_have_one_number_of_pairs() -> None:
    for pairs, part in zip(TASKS["mqar"].pairs, TASKS["mqar"].parts().values(), strict=True):
        _, labels = part.batch(torch.Generator().manual_seed(0), 8)
        assert (labels[:, : TASKS["mqar"].asked_from] == IGNORED).all()
        assert ((labels != IGNORED).sum(dim=1) == pairs).all()


@pytest.mark.parametrize("name", LONG)
def test_parts_of_a_task_have_one_length(name: str) -> None:
    task = TASKS[name]
    assert task.length in task.lengths
    for length, (part, kind) in zip(task.lengths, task.parts().items(), strict=True):
        tokens, _ = kind.batch(torch.Generator().manual_seed(0), 2)
        assert part == f"{length} tokens" and tokens.shape == (2, length)


def test_a_batch_follows_from_its_generator() -> None:
    for name in SEARCHED:
        first, again, other = (
            TASKS[name].batch(torch.Generator().manual_seed(seed), 2)[0] for seed in (1, 1, 2)
        )
        assert torch.equal(first, again) and not torch.equal(first, other), name


def test_training_evaluation_and_test_see_different_data() -> None:
    streams = [(seed, stream) for seed in range(3) for stream in training.STREAMS]
    seeds = {training.generator(*stream).initial_seed() for stream in streams}
    assert len(seeds) == len(streams)


@pytest.mark.parametrize("vocab_size", [18, 129])
def test_models_have_one_size(vocab_size: int) -> None:
    with torch.device("meta"):
        built = {name: models.build(name, vocab_size) for name in models.MODELS}
    sizes = {name: models.count_parameters(model) for name, model in built.items()}
    for name, size in sizes.items():
        assert abs(size / sizes[models.FIRST] - 1) < 0.05, name


def test_step_sizes_give_memories_one_share_of_what_is_read() -> None:
    tokens, _ = TASKS["mqar"].quick().batch(torch.Generator().manual_seed(0), 8)
    model = models.build("atlas", 17, hidden_size=32)
    before = [block.memory.step_size for block in model.blocks]
    sizes = calibration.calibrate(model, tokens)
    assert sizes == [block.memory.step_size for block in model.blocks]
    assert min(sizes) > 3 * max(before)
    block = model.blocks[0]
    x = block.memory_norm(model.embedding(tokens))
    reads = []
    block.memory.norm.register_forward_pre_hook(lambda _, given: reads.append(given[0]))
    for size in (sizes[0], 0.0):
        block.memory.step_size = size
        block.memory(x)
    share = (reads[0] - reads[1]).norm() / reads[1].norm()
    assert 0.7 < share / calibration.SHARE < 1.4
    assert calibration.calibrate(models.build("swa", 17, hidden_size=32), tokens) == []


def test_ablations_take_away_one_thing() -> None:
    atlas = models.configure("atlas", 32, 64).to_dict()
    changed = {
        "atlas-window-1": {"window"},
        "atlas-no-polynomial": {"degree"},
        "atlas-linear-memory": {"memory"},
        "atlas-no-muon": {"ns_steps", "ns_every"},
    }
    assert set(changed) == set(models.ABLATIONS)
    for name, fields in changed.items():
        config = models.configure(name, 32, 64).to_dict()
        assert {field for field, value in config.items() if value != atlas[field]} == fields


@pytest.mark.parametrize(("name", "reach"), [("transformer", 64), ("swa", 2 * 15), ("atlas", 64)])
def test_how_far_a_model_sees(name: str, reach: int) -> None:
    model = models.build(name, 8, hidden_size=32)
    x = model.embedding(torch.randint(8, (1, 64))).detach().requires_grad_()
    model.encode(x)[0, -1].sum().backward()
    touched = x.grad[0].abs().amax(-1).nonzero().flatten()
    assert 63 - int(touched[0]) == min(reach, 63) and int(touched[-1]) == 63


def test_the_state_is_counted() -> None:
    built = {
        name: models.build(name, 8, hidden_size=32) for name in ("transformer", "swa", "delta")
    }
    sizes = {
        name: [models.state_bytes(model, length) for length in (8, 64)]
        for name, model in built.items()
    }
    token = 2 * 2 * 32 * 4  # layers, key and value, heads * head_dim, bytes
    assert sizes["transformer"] == [8 * token, 64 * token]
    assert sizes["swa"] == [8 * token, 15 * token]
    assert sizes["delta"][0] == sizes["delta"][1]


class Oracle(torch.nn.Module):
    """Knows the value of every key of Memorisation, as surely as it is told to."""

    def __init__(self, certainty: float) -> None:
        super().__init__()
        self.certainty = certainty

    def forward(self, tokens: Tensor):
        task = TASKS["memorisation"]
        answers = task.dictionary()[tokens.roll(1, dims=1).clamp(max=task.keys - 1)]
        logits = self.certainty * torch.nn.functional.one_hot(answers, task.vocab_size).float()
        return type("Output", (), {"logits": logits})


def test_scores() -> None:
    task = TASKS["memorisation"]
    score = training.evaluate(Oracle(20.0), task, 5, torch.Generator())
    assert score.accuracy == 1.0 and score.loss < 1e-5
    score = training.evaluate(Oracle(0.0), task, task.batch_size + 1, torch.Generator())
    assert score.accuracy < 0.1 and score.loss == pytest.approx(math.log(task.vocab_size), abs=1e-3)
    logits = torch.zeros(1, 3, 4)
    labels = torch.tensor([[IGNORED, 2, IGNORED]])
    assert training.loss_of(logits, labels).item() == pytest.approx(1.3863, abs=1e-4)
    logits[0, 1, 2] = 30.0
    assert training.loss_of(logits, labels).item() == pytest.approx(0.0, abs=1e-4)


def test_a_loss_that_is_no_number_is_null(tmp_path: Path) -> None:
    assert [training.rounded(x) for x in (0.12345, math.nan, math.inf)] == [0.1235, None, None]
    training.write(tmp_path / "x.json", {"loss": training.rounded(math.nan)})
    assert training.read(tmp_path / "x.json") == {"loss": None}
    with pytest.raises(ValueError, match="JSON"):
        training.write(tmp_path / "x.json", {"loss": math.nan})


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [training.schedule(step, 100) for step in range(100)]
    assert rates[0] == 0.1 and max(rates) == rates[10] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(training.FINAL_RATE, abs=1e-3)


def test_training_learns_and_stops_when_it_has() -> None:
    task = replace(TASKS["memorisation"].quick(), steps=400, batch_size=16)
    torch.manual_seed(0)
    model = models.build("delta", task.vocab_size, hidden_size=32)
    result = training.train(model, task, lr=1e-2, seed=0)
    assert result["accuracy"] > 0.99 and result["steps"] < 400
    assert [step for step, *_ in result["curve"]] == list(range(20, result["steps"] + 1, 20))


def test_the_best_rate() -> None:
    def score(steps: int, loss: float | None) -> dict:
        return {"steps": steps, "loss": loss}

    scores = {"0.002": score(100, 0.5), "0.004": score(100, 0.4), "0.008": score(100, None)}
    assert rates.best(scores) == 4e-3
    scores["0.016"] = score(60, 0.41)  # solved, and stopped
    assert rates.best(scores) == 1.6e-2
    assert rates.best({rate: score(100, None) for rate in ("0.008", "0.004")}) == 4e-3


def test_the_next_rate_is_a_neighbour_of_the_best() -> None:
    losses = {1e-3: 3.0, 2e-3: 0.5, 4e-3: 1.0, 8e-3: 2.0}
    scores: dict[str, dict] = {}
    tried = []
    while (rate := rates.untried(scores)) is not None:
        tried.append(rate)
        scores[f"{rate:g}"] = {"steps": 9, "loss": losses[rate]}
    assert tried == [4e-3, 2e-3, 1e-3]
    assert rates.untried(scores, 5e-4) == 5e-4
    lowest = {f"{rates.LOWEST:g}": {"steps": 9, "loss": None}}
    assert rates.untried(lowest, rates.LOWEST) == 2 * rates.LOWEST


def test_models_are_trained_at_the_rate_that_was_searched(tmp_path: Path, threads: None) -> None:
    shared = ["--quick", "--models", "swa", "--out", str(tmp_path)]
    known = {"accuracy": 0.0, "loss": 99.0, "steps": 20, "seconds": 0.0}
    table = {"mqar": {"swa": {"0.004": known}}, rates.MAIN: {"swa": {"0.5": known}}}
    training.write(tmp_path / rates.FILE, {"tasks": table})
    assert program.main(["rates", "mqar", *shared]) == 0
    found = rates.load(tmp_path)
    scores = found["tasks"]["mqar"]["swa"]
    assert rates.untried(scores) is None and found["seed"] == rates.SEED
    assert scores["0.004"] == known and {"0.001", "0.002"} < {*scores}
    assert program.main(["run", "mqar", "memorisation", *shared, "--seeds", "1"]) == 0
    used = [
        training.read(tmp_path / name / "swa-0.json")["lr"] for name in ("mqar", "memorisation")
    ]
    assert used == [rates.best(scores), 0.5] and used[0] != 4e-3
    assert rates.chosen(tmp_path, "mqar", "delta") == training.LEARNING_RATE


def test_ablations_are_trained_on_mqar_alone() -> None:
    assert program.compared("mqar") == [*models.MODELS]
    assert not {*program.compared("facts-1")} & {*models.ABLATIONS}


def test_every_task_has_the_rates_of_one_search() -> None:
    on = {name: rates.searched_on(name) for name in TASKS}
    assert {on[name] for name in MAD} == {rates.MAIN}
    assert [on[name] for name in LONG] == 3 * [rates.NEEDLE] + 2 * [rates.FACTS]
    assert on["mqar"] == "mqar" and {*on.values()} == {*rates.STEPS}


def test_a_finished_run_is_kept(tmp_path: Path, threads: None) -> None:
    arguments = ["run", "mqar", "--quick", "--models", "swa", "--seeds", "2", "--out"]
    assert program.main([*arguments, str(tmp_path)]) == 0
    first, second = (tmp_path / "mqar" / f"swa-{seed}.json" for seed in (0, 1))
    result = training.read(first)
    assert (result["task"], result["model"], result["seed"]) == ("mqar", "swa", 0)
    assert list(result["parts"]) == ["1 pairs", "2 pairs"]
    assert result["steps"] == 20 and 0 <= result["accuracy"] <= 1 and result["parameters"] > 0
    training.write(first, result | {"accuracy": 0.123})
    second.unlink()
    assert program.main([*arguments, str(tmp_path)]) == 0
    assert training.read(first)["accuracy"] == 0.123
    assert second.exists() and not list(tmp_path.rglob("*.part"))
