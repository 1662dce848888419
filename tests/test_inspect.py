"""`atlas_ext.inspect`: what it shows is what the model does; its command line."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from model_checks import VOCAB, tokens
from torch import Tensor

from atlas_ext import reference
from atlas_ext.inspect import inspect_memory
from atlas_ext.inspect.capture import capture_tokens, find_memory
from atlas_ext.inspect.source import read_tokens
from atlas_ext.models import Atlas, AtlasConfig, DeepTransformer
from atlas_ext.models.variants import ATLAS_VARIANTS, HYBRIDS

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
LAYER, HEAD = 1, 2
PNG = b"\x89PNG\r\n\x1a\n"


def make_model(variant: str = "atlas", **options: object) -> Atlas:
    """In float64, with gates that differ from token to token, and scales unlike the default."""
    torch.manual_seed(0)
    if variant.startswith("atlas"):
        options = {"ns_every": 4, "chunk_size": 4, "window": 6} | options
    model = Atlas(AtlasConfig(**SMALL, variant=variant, **options)).double()
    with torch.no_grad():
        for block in model.blocks:
            memory = getattr(block.memory, "memory", block.memory)
            memory.gates.weight.mul_(5)
            if memory.feature_scales is not None:
                memory.feature_scales.mul_(1 + torch.arange(len(memory.feature_scales)))
    return model


def own_output(model: Atlas, ids: Tensor) -> Tensor:  # [T, V]
    """What the layer itself hands to its output norm."""
    calls = []
    norm = find_memory(model, LAYER, HEAD).norm
    hook = norm.register_forward_pre_hook(lambda _, inputs: calls.append(inputs[0]))
    with torch.no_grad():
        model(ids)
    hook.remove()
    return torch.cat(calls, 1)[0, :, HEAD]


@pytest.mark.parametrize("variant", ATLAS_VARIANTS)
def test_a_trace_reproduces_the_layer(variant: str) -> None:
    model, ids = make_model(variant), tokens(1)
    trace = inspect_memory(model, ids, LAYER, HEAD)
    torch.testing.assert_close(trace.o, own_output(model, ids))
    assert (trace.theta is not None) == model.config.momentum
    assert (trace.alpha is not None) == model.config.retention
    assert bool(trace.orthogonalised) == (model.config.ns_steps > 0)
    assert trace.loss_before[0] == trace.loss_start[0]


@pytest.mark.parametrize("hybrid", HYBRIDS)
def test_a_hybrid_is_reproduced(hybrid: str) -> None:
    # segments of 13: the last of them is a single token, which goes another way through the layer
    model = make_model(memory="linear", hybrid=hybrid, swa_window=13, swa_heads=4)
    ids = tokens(1)
    assert ids.shape[1] == 14
    trace = inspect_memory(model, ids, LAYER, HEAD)
    torch.testing.assert_close(trace.o, own_output(model, ids))


def test_a_linear_memory_by_hand() -> None:
    """The gated delta rule, token by token: losses, and the one singular value of a gradient."""
    model, ids = make_model("delta", retention=True), tokens(1)
    trace = inspect_memory(model, ids, LAYER, HEAD)
    memory = find_memory(model, LAYER, HEAD)
    inputs = capture_tokens(model, memory, ids, HEAD)
    start = m = memory.memory_weights[0][HEAD].detach()
    for t in range(ids.shape[1]):
        k, v = inputs.k[0, t, 0].detach(), inputs.v[0, t, 0].detach()
        error = m @ k - v
        gradient = trace.gamma[t, 0] * torch.outer(error, k)
        expected = trace.gamma[t, 0] * error.norm() * k.norm()
        torch.testing.assert_close(trace.loss_start[t], (start @ k - v).square().sum() / 2)
        torch.testing.assert_close(trace.loss_before[t], error.square().sum() / 2)
        m = trace.alpha[t] * m - trace.eta[t] * gradient
        torch.testing.assert_close(trace.loss_after[t], (m @ k - v).square().sum() / 2)
        (values,) = trace.singular_values
        torch.testing.assert_close(values[t, 0], expected)
        assert values[t, 1:].max() < 1e-12 * expected
    assert trace.writes.all() and trace.gamma.shape == (14, 1)


def test_a_dot_loss_by_hand() -> None:
    model, ids = make_model("linear_attention"), tokens(1)
    trace = inspect_memory(model, ids, LAYER, HEAD)
    memory = find_memory(model, LAYER, HEAD)
    inputs = capture_tokens(model, memory, ids, HEAD)
    k, v = inputs.k[0, :, 0].detach(), inputs.v[0, :, 0].detach()
    m = memory.memory_weights[0][HEAD].detach()
    torch.testing.assert_close(trace.loss_start, -(k @ m.T * v).sum(-1))
    m = m + trace.eta[0] * trace.gamma[0, 0] * torch.outer(v[0], k[0])
    torch.testing.assert_close(trace.loss_after[0], -v[0] @ m @ k[0])


@pytest.mark.parametrize("variant", ["omeganet", "atlas", "atlas++"])
def test_spectra_are_those_of_the_reference(variant: str) -> None:
    """S_t from the reference on ever longer beginnings of the text, and its Newton-Schulz."""
    model, ids = make_model(variant, ns_every=4), tokens(1)
    trace = inspect_memory(model, ids, LAYER, HEAD)
    memory = find_memory(model, LAYER, HEAD)
    with torch.no_grad():
        inputs = capture_tokens(model, memory, ids, HEAD)
    gates = [inputs.gamma, inputs.eta, inputs.log_alpha, inputs.log_theta]
    if inputs.log_theta is None:
        gates[-1] = torch.full_like(inputs.eta, -1e4)  # exp of it is 0: S_t = G_t
    written = 0
    for t in range(ids.shape[1]):
        _, state = reference.omega_rule(
            *(x[:, : t + 1] for x in (inputs.q, inputs.k, inputs.v, *gates)),
            weights=tuple(w[HEAD : HEAD + 1].detach() for w in memory.memory_weights),
            feature_scales=memory.feature_scales.detach(),
            output_final_state=True,
            **memory.options,
        )
        for values, s in zip(trace.singular_values, state.momentum, strict=True):
            torch.testing.assert_close(values[t], torch.linalg.svdvals(s[0, 0]))
        if memory.options["ns_steps"] and trace.writes[t]:
            for values, s in zip(trace.orthogonalised, state.momentum, strict=True):
                ns = reference.newton_schulz(s[0, 0])
                torch.testing.assert_close(values[written], torch.linalg.svdvals(ns))
            written += 1
    every = 1 if variant == "omeganet" else 4
    assert trace.writes.nonzero().flatten().tolist() == list(range(every - 1, 14, every))
    assert all(len(values) == written for values in trace.orthogonalised)


def test_gates_are_those_of_the_layer() -> None:
    model, ids = make_model(), tokens(1)
    trace = inspect_memory(model, ids, 0, HEAD)
    block = model.blocks[0]
    gates = block.memory.compute_gates(block.memory_norm(model.embedding(ids)))
    gamma, eta, log_alpha, log_theta = (gate[0, :, HEAD].detach() for gate in gates)
    torch.testing.assert_close(trace.eta, eta)
    torch.testing.assert_close(trace.alpha, log_alpha.exp())
    torch.testing.assert_close(trace.theta, log_theta.exp())
    torch.testing.assert_close(trace.gamma_sum[5:], gamma[5:].sum(-1))
    torch.testing.assert_close(trace.gamma_sum[:2], torch.stack([gamma[0, 0], gamma[1, :2].sum()]))


def test_a_text_too_short_for_a_write_and_other_dtypes() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        trace = inspect_memory(make_model().to(dtype), tokens(1, 3), LAYER, HEAD)
        assert not trace.writes.any() and trace.orthogonalised[0].shape == (0, 32)
        assert trace.singular_values[0].shape == (3, 32)
        assert trace.loss_after.dtype == torch.float32


def test_the_model_stays_as_it_was() -> None:
    model, ids = make_model(), tokens(1)
    before = model(ids).logits
    inspect_memory(model, ids, LAYER, HEAD)
    with pytest.raises(IndexError):
        inspect_memory(model, ids + VOCAB, LAYER, HEAD)
    assert not {"_rule", "_update"} & set(vars(model.blocks[LAYER].memory))
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"layer": 2}, "layer: wanted 0 to 1, got 2"),
        ({"head": -1}, "head: wanted 0 to 3, got -1"),
        ({"input_ids": tokens(2)}, r"input_ids: wanted \[1, T\] with T of at least 1, got \[2, 14"),
        ({"input_ids": tokens(1, 0)}, r"got \[1, 0\]"),
        ({"model": torch.nn.Linear(2, 2)}, "model: wanted an Atlas, got Linear"),
        (
            {"model": DeepTransformer(AtlasConfig(**SMALL, variant="dot"))},
            "wanted an Atlas .*no S_t.*, got a DeepTransformer",
        ),
    ],
)
def test_bad_input_is_named(options: dict[str, object], sentence: str) -> None:
    given = {"model": make_model(), "input_ids": tokens(1), "layer": 0, "head": 0}
    with pytest.raises(ValueError, match=f"inspect_memory: .*{sentence}"):
        inspect_memory(**(given | options))


def test_an_overflow_is_told() -> None:
    model = make_model("titans", chunk_size=1, step_size=1e12).float()
    with pytest.raises(ValueError, match=r"stays finite, got one that is not from token [1-9]+ on"):
        inspect_memory(model, tokens(1), LAYER, HEAD)


def test_singular_values_of_all_matrices_are_drawn() -> None:
    from atlas_ext.inspect.figures import draw_singular_values

    trace = inspect_memory(make_model(memory="gated_mlp"), tokens(1), LAYER, HEAD)
    figure = draw_singular_values(trace, list("a price of $1\n"), "a model")
    names = [panel.get_ylabel() for panel in figure.axes]
    kinds = ("momentum S_t", "written: NS(S_t)")
    assert names == [f"{kind}\nof {name}" for kind in kinds for name in ("W1", "W3", "W2")]
    for panel, values in zip(figure.axes[3:], trace.orthogonalised, strict=True):
        for line, one in zip(panel.lines, values.T, strict=True):
            points = torch.stack([torch.tensor([3, 7, 11]), one], 1)
            assert line.get_xydata().tolist() == points.tolist()
    marks = figure.axes[-1].get_xticklabels()
    assert "".join(mark.get_text() for mark in marks) == "a·price·of·$1↵"
    assert not any(mark.get_parse_math() for mark in marks)


def test_tokens_are_not_bytes_for_a_small_vocabulary() -> None:
    with pytest.raises(ValueError, match=r"model: wanted a vocabulary of at least 256.* got 255"):
        read_tokens(Path(__file__), 3, "atlas-tiny", 255)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    """`python -m atlas_ext.inspect arguments`, in this process."""
    monkeypatch.setattr(sys, "argv", ["inspect", *map(str, arguments)])
    runpy.run_module("atlas_ext.inspect", run_name="__main__")


@pytest.mark.filterwarnings("error:Glyph")  # every mark below the axis can be drawn
@pytest.mark.parametrize("preset", ["atlas++-tiny", "delta-tiny"])
def test_the_command_line_writes_figures_and_numbers(
    preset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("price:\t$1 \0 $2\n" * 9)
    run(monkeypatch, preset, "--text", text, "--tokens", 20, "--head", 1, "--out", tmp_path / "out")
    output = capsys.readouterr().out
    assert f"No checkpoint: {preset} as it is initialised" in output and "numbers.json" in output
    for name in ("gates", "losses", "singular_values"):
        assert (tmp_path / "out" / f"{name}.png").read_bytes().startswith(PNG)
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    torch.manual_seed(0)
    model = Atlas(AtlasConfig.preset(preset, vocab_size=256))
    trace = inspect_memory(model, torch.tensor([list(text.read_bytes()[:20])]), 0, 1)
    assert "".join(numbers["tokens"]) == "price:\t$1 \0 $2\nprice"
    for name in ("eta", "gamma", "loss_after"):
        torch.testing.assert_close(torch.tensor(numbers[name]), getattr(trace, name))
    for written, values in zip(numbers["singular_values"], trace.singular_values, strict=True):
        torch.testing.assert_close(torch.tensor(written), values)


def test_a_checkpoint_of_the_example_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    program = importlib.import_module("train_lm")
    small = ["--out", str(tmp_path), "--hidden", "16", "--layers", "1", "--heads", "2"]
    (started,) = program.make_runs(program.make_parser().parse_args([*small, "--ablations"]))
    with torch.no_grad():  # unlike what the configuration alone would give
        started.model.blocks[0].memory.gates.bias.add_(1)
    started.save()
    # too long for its letters to stand below the axis
    run(monkeypatch, started.path, "--tokens", 200, "--out", tmp_path / "out")
    assert "No checkpoint" not in capsys.readouterr().out
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    ids = torch.tensor([[ord(piece) for piece in numbers["tokens"]]])
    trace = inspect_memory(started.model, ids, 0, 0)
    torch.testing.assert_close(torch.tensor(numbers["theta"]), trace.theta)
    assert ids.shape == (1, 200)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere.pt"], "no file or folder 'nowhere.pt', and: AtlasConfig: preset: wanted"),
        (["FOLDER"], "wanted a folder written by save_pretrained of atlas_ext.hf, or a checkpoint"),
        ([__file__], "wanted a safetensors file, got"),
        (["dot-tiny"], "model: wanted an Atlas"),
        (["--text", "/nowhere.txt"], "text: cannot read /nowhere.txt: No such file"),
        (["--tokens", "0"], "tokens: wanted at least 1, got 0"),
        (["--layer", "7"], "layer: wanted 0 to 1, got 7"),
    ],
)
def test_mistakes_end_in_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [str(tmp_path) if argument == "FOLDER" else argument for argument in arguments]
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, *given, "--out", tmp_path / "out")
    assert sentence in str(end.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_matplotlib_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "atlas_ext.inspect.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "--out", tmp_path)
    assert "matplotlib" in str(end.value) and "pip install 'atlas_ext[demo]'" in str(end.value)
