"""The experiments on bare memories, and what is made of results."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import atlas_ext.reference as reference
from bench.quality import __main__ as program
from bench.quality import capacity, claims, learnability, online, rates, report, tables, training


@pytest.mark.parametrize("degree", capacity.DEGREES)
def test_least_squares_stores_as_many_pairs_as_there_are_features(degree: int) -> None:
    features = math.comb(online.DIM + degree, degree)
    assert capacity.least_squares_error(degree, features, 2).max() < 1e-9
    assert capacity.least_squares_error(degree, features + 10, 2).min() > 0.01


def test_the_delta_rule_of_a_bare_memory() -> None:
    k, v = capacity.draw_pairs(1, 5)
    q = torch.randn(1, 5, online.DIM)
    o = online.learn(online.MEMORIES["linear"], online.RULES["delta"], k, v, q, torch.ones(5))
    for index, eta in enumerate(online.STEP_SIZES):
        memory = torch.zeros(online.DIM, online.DIM)
        for t in range(5):
            memory += eta * torch.outer(v[0, t] - memory @ k[0, t], k[0, t])
            torch.testing.assert_close(o[0, t, index], memory @ q[0, t], rtol=1e-4, atol=1e-4)


def test_the_whole_rule_of_a_bare_memory() -> None:
    memory, rule = online.MEMORIES["deep polynomial"], online.RULES["omega + momentum + Muon"]
    k, v = capacity.draw_pairs(1, 4)
    o = online.learn(memory, rule, k, v, k, torch.ones(4))
    index = online.STEP_SIZES.index(0.1)
    weights = tuple(w[index : index + 1].double() for w in online.initial_weights(memory))
    one = torch.ones(1, 4, 1, dtype=torch.float64)
    x, y = (tensor[:, :, None].double() for tensor in (k, v))
    expected, _ = reference.omega_rule(
        x, x, y, one[..., None].expand(-1, -1, -1, 16) / 16, 0.1 * one, None,
        math.log(online.THETA) * one, weights=weights, degree=2, ns_steps=5, chunk_size=1,
    )  # fmt: skip
    torch.testing.assert_close(o[:, :, index].double(), expected[:, :, 0], rtol=2e-3, atol=2e-3)


def test_nothing_is_written_while_pairs_are_read() -> None:
    pairs, passes = 3, 2
    errors = capacity.rule_errors(online.MEMORIES["linear"], "delta", pairs, passes, 1)
    k, v = capacity.draw_pairs(1, pairs)
    memory = torch.zeros(online.DIM, online.DIM)
    for step in range(passes * pairs):
        t = step % pairs
        eta = 1.0 - step / (passes * pairs)
        memory += eta * torch.outer(v[0, t] - memory @ k[0, t], k[0, t])
    wanted = (k[0] @ memory.T - v[0]).square().sum() / v.square().sum()
    index = online.STEP_SIZES.index(1.0)
    assert errors[0, index].item() == pytest.approx(wanted.item(), rel=1e-4)


def test_families() -> None:
    sizes = learnability.Sizes(length=48, seeds=2)
    for name in learnability.FAMILIES:
        x, y = learnability.draw(name, sizes)
        assert x.shape == y.shape == (2, 48, online.DIM)
        for values in (x, y):
            torch.testing.assert_close(values.square().sum(-1).mean(-1), torch.ones(2))
    x, y = learnability.draw("low rank", sizes)
    assert (torch.linalg.matrix_rank(y) == learnability.RANK).all()
    # the low-rank map is a function of x alone, an attention's answer is not
    torch.testing.assert_close(x @ (torch.linalg.pinv(x) @ y), y, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("window", "first"), [(48, 0), (16, 40 - 15)])
def test_attention_sees_its_window(window: int, first: int) -> None:
    x = torch.randn(1, 48, online.DIM, requires_grad=True)
    y = learnability.attention(x, torch.Generator().manual_seed(0), window)
    y[0, 40].sum().backward()
    touched = x.grad[0].abs().amax(-1).nonzero().flatten().tolist()
    assert touched == list(range(first, 41))


def test_a_prediction_is_made_before_its_answer_is_seen() -> None:
    x, y = learnability.draw("MLP", learnability.Sizes(length=8, seeds=1))
    memory, rule = online.MEMORIES["deep"], online.RULES["omega"]
    before = learnability.predict(memory, rule, x, y)
    y[:, 5] += 1.0
    after = learnability.predict(memory, rule, x, y)
    assert before.shape[1] == 7
    changed = (before != after).flatten(2).any(-1)[0].tolist()
    assert changed == [False] * 5 + [True] * 2  # the predictions of y_6 and y_7


def test_stored_pairs_end_at_the_first_failure() -> None:
    errors = {4: 0.0, 8: 0.05, 16: 0.5, 32: 0.05}
    rows = [{"pairs": pairs, "error": error} for pairs, error in errors.items()]
    assert capacity.stored_pairs(rows) == 8 and capacity.stored_pairs(rows[2:]) == 0


def test_verdicts_know_the_noise() -> None:
    high, low, wide = [0.9, 0.91, 0.92], [0.5, 0.51, 0.52], [0.4, 0.7, 0.95]
    assert claims.verdict(high, low) == "agrees"
    assert claims.verdict(low, high) == "disagrees"
    assert claims.verdict(high, wide) == claims.verdict(wide, low) == "no difference beyond noise"
    assert claims.verdict([0.9, 0.9], [0.895, 0.895]) == "no difference beyond noise"
    assert claims.verdict([0.9], low) == "no spread: one seed"


def test_a_run_that_diverged_is_marked() -> None:
    def runs(*losses: float | None) -> list[dict]:
        return [{"accuracy": 0.5, "loss": loss} for loss in losses]

    results = {"memorisation": {"atlas": runs(0.1, 0.2), "titans": runs(0.1, None)}}
    table = report.mad_table(results).splitlines()
    assert "| titans | 50.0 ± 0.0 † | 50.0 | 2 |" in table and tables.FOOTNOTE in table
    text, _ = claims.compare(results, ["memorisation"], "atlas", "titans")
    assert text == "memorisation: atlas 50.0 ± 0.0 %, titans 50.0 ± 0.0 % †"
    del results["memorisation"]["titans"]
    assert tables.DIVERGED not in report.mad_table(results)


def test_models_are_compared_in_the_mean_over_tasks() -> None:
    def runs(*accuracies: float) -> list[dict]:
        return [{"accuracy": accuracy, "loss": 0.1} for accuracy in accuracies]

    results = {
        "a": {"new": runs(0.9, 0.8, 0.1), "old": runs(0.5, 0.5)},
        "b": {"new": runs(0.7, 0.8), "old": runs(0.1, 0.1)},
    }
    assert claims.compare(results, ["a", "b"], "new", "old") == (
        "a, b: new 80.0 ± 0.0 %, old 30.0 ± 0.0 %",
        "agrees",
    )
    for runs_of in results["a"].values():
        for run in runs_of:
            run["parts"] = {"64 tokens": run["accuracy"] / 10}
    text, _ = claims.compare(results, ["a"], "new", "old", "64 tokens")
    assert text == "a, 64 tokens: new 6.0 ± 4.4 %, old 5.0 ± 0.0 %"
    assert claims.compare(results, ["a", "c"], "new", "old") is None
    assert claims.compare(results, [], "new", "old") is None


def test_what_is_kept_as_texts_grow() -> None:
    def runs(near: float, far: float) -> list[dict]:
        parts = {"64 tokens": near, "128 tokens": 0.0, "256 tokens": far}
        return [{"parts": parts, "loss": 0.1}] * 2

    results = {"a": {"good": runs(1.0, 0.95), "bad": runs(0.9, 0.5), "none": runs(0.2, 0.2)}}
    text = "a: good 100.0 ± 0.0 % at 64 tokens, 95.0 ± 0.0 % at 256 tokens"
    assert claims.keeps(results, "a", "good") == (text, "agrees")
    words = [claims.keeps(results, "a", name)[1] for name in ("bad", "none")]
    assert words == ["disagrees", "not learned"]
    assert claims.keeps(results, "b", "good") is None


def test_settings_are_compared_like_with_like() -> None:
    def row(rule: str, pairs: int, error: float) -> dict:
        return {"rule": rule, "pairs": pairs, "error": error, "spread": 0.01, "step_size": 1.0}

    better = [row("new", 4, 0.1), row("new", 8, 0.2), row("new", 16, 0.4)]
    worse = [row("old", 4, 0.3), row("old", 8, 0.6), row("old", 16, 0.4), row("old", 32, 0.0)]
    found = {"rows": better + worse, "seeds": 3}

    def count(one: str, two: str) -> tuple[str, str]:
        return claims.count_better(found, "rows", {"rule": one}, {"rule": two}, "here")

    assert count("new", "old") == ("here: lower error in 2, higher in 0 of 3 settings", "agrees")
    found["rows"] += [row(rule, pairs, 0.5) for rule in ("new", "old") for pairs in (1, 2, 3)]
    assert count("new", "old") == (
        "here: lower error in 2, higher in 0 of 6 settings",
        "agrees in part",
    )
    found["rows"] += [row("new", 64, 0.5), row("old", 64, 0.1)]
    assert count("new", "old")[1] == "mixed"
    del found["rows"][-8:]
    assert count("old", "new") == ("here: lower error in 0, higher in 2 of 3 settings", "disagrees")


def test_parts_of_the_page_are_replaced() -> None:
    page = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n"
    wanted = "a\n<!-- begin x -->\nnew \\1\n<!-- end x -->\nb\n"
    assert report.fill(page, {"x": "new \\1"}) == wanted
    assert report.fill(wanted, {"x": "old"}) == page
    with pytest.raises(ValueError, match="wanted one place for 'y', got 0"):
        report.fill(page, {"y": ""})


def test_the_page_is_made_from_the_committed_results() -> None:
    page = (report.DOCS / "results.md").read_text()
    parts = report.sections(Path(report.__file__).parent / "results")
    assert report.fill(page, parts) == page


def test_committed_results_have_the_rates_that_were_searched() -> None:
    folder = Path(report.__file__).parent / "results"
    for task, by_model in report.load(folder).items():
        for name, runs in by_model.items():
            assert {run["lr"] for run in runs} == {rates.chosen(folder, task, name)}, (task, name)
            assert rates.SEED not in {run["seed"] for run in runs}


def test_a_report_from_runs(tmp_path: Path, threads: None) -> None:
    results, docs = tmp_path / "results", tmp_path / "docs"
    docs.mkdir()
    names = (
        "claims", "environment", "rates", "mqar", "mad", "long", "capacity", "learnability",
    )  # fmt: skip
    text = "".join(f"<!-- begin {name} -->\n<!-- end {name} -->\n" for name in names)
    (docs / "results.md").write_text(text)
    models = ["--models", "swa", "delta", "--seeds", "2", "--quick", "--out", str(results)]
    assert program.main(["run", "capacity", "learnability", "--quick", "--out", str(results)]) == 0
    assert program.main(["run", "mqar", "memorisation", "needle-passkey", *models]) == 0
    scores = {f"{rate:g}": {"accuracy": rate, "loss": -rate, "steps": 1} for rate in (0.4, 0.8)}
    training.write(results / rates.FILE, {"tasks": {"mqar": {"swa": scores}}})
    assert program.main(["report", "--results", str(results), "--docs", str(docs)]) == 0
    page = (docs / "results.md").read_text()
    for words in (
        "| delta | ", "agrees |", "1 pairs", "| memorisation | mean |", "166", "Muon",
        "`needle-passkey`:", "| 128 tokens |", "| mqar | swa | 40.0 | **80.0** |",
    ):  # fmt: skip
        assert words in page, words
    for name in ("mqar", "mad", "long", "capacity", "learnability"):
        assert (docs / "images" / f"quality_{name}.png").stat().st_size > 0
