"""`python -m atlas_ext.inspect` on folders that transformers has written."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from hf_models import SMALL, make_model

from atlas_ext.hf import DeepTransformerForCausalLM, DeepTransformerHFConfig
from atlas_ext.inspect import inspect_memory

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["inspect", *map(str, arguments)])
    runpy.run_module("atlas_ext.inspect", run_name="__main__")


@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_a_folder_is_read(
    with_tokenizer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from _tokenizer import VOCAB_SIZE, byte_tokenizer

    model = make_model(vocab_size=VOCAB_SIZE)
    model.save_pretrained(tmp_path / "model")
    if with_tokenizer:
        byte_tokenizer().save_pretrained(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("the lazy dog")
    run(monkeypatch, tmp_path / "model", "--text", text, "--layer", 1, "--out", tmp_path / "out")
    numbers = json.loads((tmp_path / "out" / "numbers.json").read_text())
    assert numbers["tokens"] == list("the lazy dog")
    trace = inspect_memory(model.model, torch.tensor([list(b"the lazy dog")]), 1, 0)
    torch.testing.assert_close(torch.tensor(numbers["loss_after"]), trace.loss_after)


def test_bytes_need_room_in_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model().save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, tmp_path, "--out", tmp_path / "out")
    assert "wanted a vocabulary of at least 256" in str(end.value)


def test_a_folder_of_a_deep_transformer_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {name: SMALL[name] for name in ("hidden_size", "num_layers", "num_heads")}
    config = DeepTransformerHFConfig(vocab_size=256, **sizes)
    DeepTransformerForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, tmp_path, "--out", tmp_path / "out")
    assert "model: wanted an Atlas" in str(end.value)
