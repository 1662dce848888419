"""The examples around transformers: the Trainer on a local text, lm-evaluation-harness."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="needs the extra hf: pip install 'atlas_ext[hf]'")
pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

from atlas_ext.hf import AtlasForCausalLM

EXAMPLES = Path(__file__).parents[1] / "examples"
SMALL = ["--steps", "4", "--batch", "2", "--seq-len", "32"]


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    """Sizes this small are quicker so."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def examples() -> Iterator[None]:
    sys.path.insert(0, str(EXAMPLES))
    yield
    sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def program(examples: None) -> ModuleType:
    return importlib.import_module("hf_finetune")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("a quick brown fox jumps over the lazy dog; " * 100)
    return path


@pytest.fixture(scope="module")
def folder(program: ModuleType, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that the example has trained and written, with its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["", "--data", str(text), "--out", str(path), *SMALL])
        program.main()
    return path


def test_model_and_tokenizer_are_found_again(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    string = "a quick 'brown' fox\n\t– ünï"
    assert tokenizer(string)["input_ids"] == list(string.encode())
    assert tokenizer.decode(list(string.encode())) == string
    batch = tokenizer(["a quick", "a"], padding=True, return_tensors="pt")
    assert batch["attention_mask"].tolist() == [[1] * 7, [0] * 6 + [1]]
    assert model.generate(**batch, max_new_tokens=3).shape[0] == 2
    generator = pipeline("text-generation", model=model, tokenizer=tokenizer)
    assert generator("a quick", max_new_tokens=3)[0]["generated_text"].startswith("a quick")


def test_accumulated_batches_equal_a_large_one(
    program: ModuleType, text: Path, tmp_path: Path
) -> None:
    results = []
    for options in (["--batch", "4"], ["--batch", "2", "--accumulate", "2", "--checkpointing"]):
        arguments = ["--data", str(text), "--out", str(tmp_path), *SMALL, *options]
        args = program.make_parser().parse_args(arguments)
        trainer = program.make_trainer(
            args, program.load_start(None, 0), program.load_text(args.data)
        )
        trainer.train()
        results.append(list(trainer.model.parameters()))
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_train_lm_can_be_the_start(
    program: ModuleType, text: Path, tmp_path: Path
) -> None:
    train = importlib.import_module("train_lm")
    arguments = ["--out", str(tmp_path), "--ablations", "--hidden", "32", "--layers", "1"]
    (run,) = train.make_runs(train.make_parser().parse_args(arguments))
    run.save()
    model = program.load_start(tmp_path / "atlas.safetensors", 0)
    ids = torch.tensor([list(b"a quick brown")])
    torch.testing.assert_close(model(ids).logits[..., :256], run.model(ids).logits)
    assert model.config.vocab_size == program.VOCAB_SIZE and model.config.eos_token_id == 256


def test_harness_runs_tasks_without_a_download(
    folder: Path, text: Path, examples: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-evaluation-harness: pip install lm-eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    local = importlib.import_module("lm_eval_local")
    data = local.load_text([str(text)])
    prompts = [{"query": "a quick"}, {"query": "a quick brown fox "}, {"query": "dog"}]
    generating = local.make_task(
        "generating", prompts, output_type="generate_until", doc_to_text="{{query}}",
        doc_to_target="{{query}}", generation_kwargs={"until": ["\0"], "max_gen_toks": 5},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )  # fmt: skip
    tasks = [local.text_task(data, 3, 40), local.recall_task(5, 4, 0), generating]
    results = local.evaluate(folder, tasks, batch=3)
    assert 0 <= results["recall"]["acc,none"] <= 1
    assert results["generating"]["exact_match,none"] == 0
    model = AtlasForCausalLM.from_pretrained(folder)
    windows = local.held_out_windows(data, 3, 40)
    begun = F.pad(windows, (1, 0), value=model.config.eos_token_id)
    with torch.no_grad():
        scores = model(begun).logits[:, :-1]
    expected = F.cross_entropy(scores.flatten(0, 1), windows.flatten()) / math.log(2)
    bits = results["local_text"]["bits_per_byte,none"]
    assert bits == pytest.approx(expected.item(), rel=1e-4)
