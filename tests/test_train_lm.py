"""The example's program: train, stop, resume, sample."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = [
    "--hidden", "32", "--layers", "1", "--heads", "2", "--steps", "6", "--batch", "2",
    "--seq-len", "32", "--tokens", "20",
]  # fmt: skip


def run(*arguments: object, expect: int = 0) -> str:
    command = [sys.executable, EXAMPLES / "train_lm.py", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("a quick brown fox jumps over the lazy dog; " * 200)
    return path


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module("train_lm")


@pytest.mark.slow
def test_a_run_writes_everything(tmp_path: Path, text: Path) -> None:
    # six steps cannot beat the bigram: said, and told by the exit status
    output = run("--out", tmp_path, "--data", text, *SMALL, expect=1)
    models = ("atlas", "gated-delta", "linear-memory")
    assert "FAILED" in output and "After 6 steps" in output
    for name in ("report.md", "curves.png", *(f"{model}.safetensors" for model in models)):
        assert (tmp_path / name).stat().st_size > 0
    report = (tmp_path / "report.md").read_text()
    assert "atlas_ext::omega_rule" in report and "byte bigram" in report
    for name in models[1:]:
        assert f"its ablation {name} (" in output and f"its ablation {name} (" in report
        assert f"\n| {name} | " in report
    output = run("--out", tmp_path, "--sample", "--prompt", "a quick", "--tokens", 5)
    assert output.startswith("a quick")


def test_a_resumed_run_equals_an_uninterrupted_one(
    tmp_path: Path, text: Path, program: ModuleType
) -> None:
    arguments = ["--out", str(tmp_path), "--data", str(text), *SMALL, "--ablations", "no-muon"]
    args = program.make_parser().parse_args(arguments)
    loaded = program.load_text(args.data)
    whole, *_ = program.make_runs(args)
    whole.train(loaded)
    started, other = program.make_runs(args)
    for step in range(3):
        ids = program.training_batch(loaded, step, args.batch, args.seq_len, args.seed)
        started.history.loss.append(started.train_step(ids))
    started.save()
    other.save()
    resumed, untouched = program.resume_runs(args)
    assert (resumed.step, untouched.step) == (3, 0)
    assert resumed.train(loaded)
    assert resumed.history.loss == whole.history.loss
    assert resumed.history.held_out[-1] == whole.history.held_out[-1]
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, resumed.model.get_parameter(name)), name


def test_ablations_take_away_one_thing(program: ModuleType) -> None:
    def configs(*arguments: str) -> dict:
        return program.make_configs(program.make_parser().parse_args([*arguments]))

    default = configs()
    assert list(default) == ["atlas", "gated-delta", "linear-memory"]
    assert default["atlas"].memory == "mlp" and default["atlas"].ns_steps == 5
    assert list(configs("--ablations")) == ["atlas"]
    assert list(configs("--memory", "linear")) == ["atlas", "gated-delta"]
    every = configs("--ablations", *program.ABLATIONS)
    changed = {
        "linear-memory": {"memory"}, "no-muon": {"ns_steps"}, "window-1": {"window"},
        "no-polynomial": {"degree"},
    }  # fmt: skip
    atlas = every["atlas"].to_dict()
    for name, fields in changed.items():
        assert {f for f, value in every[name].to_dict().items() if value != atlas[f]} == fields
    delta = every["gated-delta"]
    assert (delta.variant, delta.retention, delta.hidden_size) == ("delta", True, 64)


def test_a_step_that_is_not_finite_changes_nothing(tmp_path: Path, program: ModuleType) -> None:
    arguments = ["--out", str(tmp_path), *SMALL, "--memory", "linear", "--ablations"]
    (run,) = program.make_runs(program.make_parser().parse_args(arguments))
    ids = torch.zeros(1, 8, dtype=torch.long)
    run.train_step(ids)
    before = [parameter.clone() for parameter in run.model.parameters()]
    scale = run.model.norm.weight[0].item()
    with torch.no_grad():
        run.model.norm.weight[0] = float("inf")
    run.train_step(ids)
    with torch.no_grad():
        run.model.norm.weight[0] = scale
    assert run.history.skipped == 1
    for parameter, old in zip(run.model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
    run.train_step(ids)
    assert run.history.skipped == 1
    assert not torch.equal(next(run.model.parameters()), before[0])


def test_a_model_without_a_number_fails_the_baseline(program: ModuleType) -> None:
    report = importlib.import_module("_report")
    result = report.Result(SimpleNamespace(name="atlas"), torch.tensor([float("nan")]), {})
    beaten, sentence = report.judge_baseline([result], 3.5)
    assert not beaten and "atlas did not beat" in sentence


@pytest.mark.slow
def test_interrupt_saves_and_says_how_to_go_on(tmp_path: Path, text: Path) -> None:
    command = [sys.executable, EXAMPLES / "train_lm.py", "--out", tmp_path, "--data", text]
    small = [*SMALL[:6], "--steps", "100000", *SMALL[8:]]
    process = subprocess.Popen(
        [*map(str, command), *small],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        while "bits per byte" not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert "--resume" in output
    assert (tmp_path / "atlas.safetensors").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--resume"], "No checkpoint"),
        (["--heads", "3"], "hidden_size: wanted a multiple"),
        (["--memory", "linear", "--ablations", "linear-memory"], "is that already"),
        (["--variant", "titans", "--ablations", "no-muon"], "is that already"),
        (["--data", "TEXT", "--seq-len", "100000"], "smaller --seq-len"),
        (["--data", "/nowhere.txt"], "/nowhere.txt"),
    ],
)
def test_mistakes_end_in_a_sentence(
    tmp_path: Path, text: Path, arguments: list[str], sentence: str
) -> None:
    given = [str(text) if argument == "TEXT" else argument for argument in arguments]
    output = run("--out", tmp_path, *given, expect=1)
    assert sentence in output and "Traceback" not in output
