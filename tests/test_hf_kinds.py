"""transformers' interface over attention beside the memory, and over `DeepTransformer`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra hf: pip install 'atlas_ext[hf]'")

from hf_models import CLOSE, SMALL, left_padded
from transformers import AutoModelForCausalLM

from atlas_ext.hf import (
    AtlasForCausalLM,
    AtlasHFConfig,
    DeepTransformerForCausalLM,
    DeepTransformerHFConfig,
)

SIZE = {name: SMALL[name] for name in ("vocab_size", "hidden_size", "num_layers", "num_heads")}
KINDS = [
    *(pytest.param({"hybrid": kind, "swa_window": 5}, id=kind) for kind in ("mag", "mal", "mac")),
    *(
        pytest.param({"variant": name, "chunk_size": 4}, id=name)
        for name in ("deep_transformer", "dot")
    ),
]
EVERY_KIND = pytest.mark.parametrize("fields", KINDS)


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    """Sizes this small are quicker so."""
    torch.set_num_threads(1)


def make_model(fields: dict) -> AtlasForCausalLM:
    torch.manual_seed(0)
    if "variant" in fields:
        config = DeepTransformerHFConfig(**SIZE, **fields, pad_token_id=0)
        model: AtlasForCausalLM = DeepTransformerForCausalLM(config)
    else:
        model = AtlasForCausalLM(AtlasHFConfig(**(SMALL | fields)))
    with torch.no_grad():  # far from the uniform distribution
        model.model.lm_head.weight.mul_(30)
    return model.eval()


@EVERY_KIND
@pytest.mark.parametrize("beams", [1, 3])
def test_padded_generation_with_a_cache_equals_none(fields: dict, beams: int) -> None:
    model = make_model(fields)
    ids, mask, rows = left_padded([9, 4, 13])
    options = {"max_new_tokens": 8, "do_sample": False, "num_beams": beams}
    out = model.generate(ids, attention_mask=mask, **options)
    plain = model.generate(ids, attention_mask=mask, **options, use_cache=False)
    assert torch.equal(out, plain)
    for i, row in enumerate(rows):
        assert torch.equal(out[i, 13:], model.generate(row, **options)[0, row.shape[1] :])


@EVERY_KIND
def test_files_and_gradients(fields: dict, tmp_path: Path) -> None:
    model = make_model(fields)
    ids, mask, _ = left_padded([9, 4])
    model.save_pretrained(tmp_path)
    twin = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(twin) is type(model) and twin.config.to_atlas() == model.config.to_atlas()
    gradients = []
    for each in (model, twin):
        if each is twin:
            each.activation_checkpointing_enable()
        each(ids, attention_mask=mask, labels=ids).loss.backward()
        gradients.append([parameter.grad for parameter in each.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, **CLOSE)


def test_configurations_are_not_confused() -> None:
    assert DeepTransformerHFConfig(**SIZE).variant == "deep_transformer"
    with pytest.raises(ValueError, match=r"Atlas: config\.variant: wanted"):
        AtlasForCausalLM(AtlasHFConfig(**SIZE, variant="dot"))
