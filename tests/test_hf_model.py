"""`AtlasForCausalLM`: forward, loss, padding, files, Auto classes, gradient checkpointing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("transformers", reason="needs the extra hf: pip install 'atlas_ext[hf]'")

import transformers
from hf_models import CLOSE, PAD, SMALL, VOCAB, left_padded, make_model, tokens

from atlas_ext.hf import AtlasForCausalLM, AtlasHFConfig
from atlas_ext.models import Atlas, AtlasConfig


@pytest.fixture(autouse=True)
def one_thread(threads: None) -> None:
    """Sizes this small are quicker so."""
    torch.set_num_threads(1)


def test_it_is_the_model_itself() -> None:
    model = make_model()
    torch.manual_seed(0)
    twin = Atlas(model.config.to_atlas())
    ids = tokens()
    ours, theirs = model(ids, labels=ids), twin(ids, labels=ids)
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.loss, theirs.loss)
    assert isinstance(model(ids, return_dict=False), tuple)


def test_a_model_is_wrapped_with_its_parameters() -> None:
    plain = Atlas(AtlasConfig(**{k: v for k, v in SMALL.items() if k != "pad_token_id"}))
    model = AtlasForCausalLM.from_atlas(plain, pad_token_id=PAD)
    assert model.model is plain and model.config.pad_token_id == PAD
    assert torch.equal(model(tokens()).logits, plain(tokens()).logits)
    assert model.generate(tokens(), max_new_tokens=2).shape == (2, 16)


def test_configuration_checks_and_names() -> None:
    config = AtlasHFConfig(
        **SMALL | {"num_layers": 1}, tie_word_embeddings=True, num_hidden_layers=3
    )
    assert (config.num_layers, config.num_hidden_layers) == (3, 3)
    assert config.tie_embeddings and config.tie_word_embeddings and config.num_attention_heads == 4
    assert config.to_atlas() == AtlasHFConfig.from_atlas(config.to_atlas()).to_atlas()
    with pytest.raises(ValueError, match="AtlasConfig: memory: wanted"):
        AtlasHFConfig(**SMALL, memory="large")
    config.window = 0
    with pytest.raises(ValueError, match="AtlasConfig: window: wanted"):
        config.to_atlas()


@pytest.mark.parametrize("tie", [False, True])
def test_save_and_load(tmp_path: Path, tie: bool) -> None:
    model = make_model(tie_word_embeddings=tie, degree=None)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, AtlasHFConfig) and config.to_atlas() == model.config.to_atlas()
    twin = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(twin, AtlasForCausalLM) and (twin.model.lm_head is None) == tie
    assert torch.equal(twin(tokens()).logits, model(tokens()).logits)
    assert twin.num_parameters() == model.num_parameters()
    half = AtlasForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half(tokens()).logits.dtype == torch.bfloat16


def test_sharded_files(tmp_path: Path) -> None:
    model = make_model()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    twin = AtlasForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(twin(tokens()).logits, model(tokens()).logits)


def test_weights_missing_in_a_file_are_initialised(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    state = model.state_dict()
    missing = [name for name in state if "blocks.1.memory." in name]
    model.save_pretrained(tmp_path, state_dict={k: v for k, v in state.items() if k not in missing})
    torch.manual_seed(5)
    twin = AtlasForCausalLM.from_pretrained(tmp_path)
    torch.manual_seed(5)
    fresh = AtlasForCausalLM(model.config).state_dict()
    for name, tensor in twin.state_dict().items():
        assert torch.equal(tensor, (fresh if name in missing else state)[name]), name


@pytest.mark.parametrize("tie", [False, True])
def test_the_vocabulary_can_grow(tmp_path: Path, tie: bool) -> None:
    model = make_model(tie_word_embeddings=tie)
    before = model(tokens()).logits
    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    logits = model(tokens()).logits
    assert logits.shape[-1] == VOCAB + 3 == model.model.config.vocab_size
    torch.testing.assert_close(logits[..., :VOCAB], before)
    model.save_pretrained(tmp_path)
    assert torch.equal(AtlasForCausalLM.from_pretrained(tmp_path)(tokens()).logits, logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_reach_the_memory(side: str) -> None:
    model = make_model()
    ids, mask, rows = left_padded([9, 4, 13], side)
    out = model(ids, attention_mask=mask, use_cache=True, output_hidden_states=True)
    assert (out.logits[mask == 0] == 0).all()
    assert out.cache.atlas.position.tolist() == [9, 4, 13] and out.cache.get_seq_length() == 13
    assert len(out.hidden_states) == 3 and out.hidden_states[0].shape == (3, 13, 32)
    for i, row in enumerate(rows):
        alone = model(row, use_cache=True)
        torch.testing.assert_close(out.logits[i][mask[i] == 1], alone.logits[0], **CLOSE)
        for name, tensor in alone.cache.atlas.state_dict().items():
            torch.testing.assert_close(out.cache.atlas.state_dict()[name][i], tensor[0], **CLOSE)
    garbage = torch.where(mask == 0, 7, ids)
    assert torch.equal(model(garbage, attention_mask=mask).logits, out.logits)


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_of_a_padded_batch(side: str) -> None:
    model = make_model()
    ids, mask, rows = left_padded([9, 4, 13], side)
    loss = model(ids, attention_mask=mask, labels=ids).loss
    sums = [model(row, labels=row).loss * (row.shape[1] - 1) for row in rows]
    torch.testing.assert_close(loss, sum(sums) / (8 + 3 + 12))
    scaled = model(ids, attention_mask=mask, labels=ids, num_items_in_batch=46).loss
    torch.testing.assert_close(scaled, sum(sums) / 46)


def test_packed_sequences_under_any_name() -> None:
    model = make_model()
    rows = [tokens(1, n, seed=n) for n in (5, 8)]
    ids, bounds = torch.cat(rows, 1), torch.tensor([0, 5, 13])
    positions = torch.cat([torch.arange(5), torch.arange(8)]).unsqueeze(0)
    expected = torch.cat([model(row).logits for row in rows], 1)
    loss = sum(model(row, labels=row).loss * (row.shape[1] - 1) for row in rows) / 11
    for name, value in (
        ("cu_seqlens", bounds), ("cu_seq_lens_q", bounds.int()), ("position_ids", positions),
    ):  # fmt: skip
        out = model(ids, labels=ids, **{name: value})
        torch.testing.assert_close(out.logits, expected, **CLOSE)
        torch.testing.assert_close(out.loss, loss)


def test_logits_to_keep_and_embeddings_as_input() -> None:
    model = make_model()
    ids = tokens()
    whole = model(ids).logits
    embeddings = model.get_input_embeddings()(ids)
    torch.testing.assert_close(model(ids, logits_to_keep=3).logits, whole[:, -3:])
    places = torch.tensor([0, 5])
    torch.testing.assert_close(model(ids, logits_to_keep=places).logits, whole[:, places])
    torch.testing.assert_close(model(inputs_embeds=embeddings).logits, whole)
    kept = model(ids, labels=ids, logits_to_keep=1)
    torch.testing.assert_close(kept.logits, whole[:, -1:])
    expected = F.cross_entropy(whole[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(kept.loss, expected)


def test_gradient_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for enable in (False, True):
        model = make_model().train()
        if enable:
            model.activation_checkpointing_enable()
        assert model.is_activation_checkpointing == enable
        ids, mask, _ = left_padded([9, 4])
        model(ids, attention_mask=mask, labels=ids).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        model.activation_checkpointing_disable()
        assert not model.model.config.activation_checkpointing
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"input_ids": None}, "input_ids, inputs_embeds: wanted one"),
        ({"attention_mask": torch.ones(2, 5)}, r"attention_mask: wanted \[2, 14 or more\]"),
        ({"labels": tokens(length=3)}, "labels: wanted"),
        (
            {"cu_seqlens": torch.tensor([0, 28]), "attention_mask": torch.eye(14)[:2]},
            "attention_mask: wanted none beside cu_seqlens",
        ),
    ],
)
def test_forward_names_what_is_wrong(arguments: dict, text: str) -> None:
    with pytest.raises(ValueError, match=f"AtlasForCausalLM: {text}"):
        make_model()(**({"input_ids": tokens()} | arguments))
