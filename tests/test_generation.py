"""generate: prompts of unequal length, callback, caches that are branched, moved and saved."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from model_checks import VOCAB, tokens
from torch import Tensor

from atlas_ext.models import Atlas, AtlasCache, AtlasConfig

SMALL = {
    "vocab_size": VOCAB, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "window": 3,
    "chunk_size": 4, "ns_every": 3, "swa_window": 5, "swa_heads": 2,
}  # fmt: skip
HYBRIDS = (None, "mag", "mal", "mac")
EVERY_HYBRID = pytest.mark.parametrize("hybrid", HYBRIDS)
GREEDY = {"max_new_tokens": 6, "temperature": 0}


def make_model(hybrid: str | None) -> Atlas:
    torch.manual_seed(0)
    return Atlas(AtlasConfig(variant="atlas", hybrid=hybrid, **SMALL))


@EVERY_HYBRID
def test_prompts_of_unequal_length(hybrid: str | None) -> None:
    model = make_model(hybrid)
    ids = tokens(3, 8)
    mask = torch.ones_like(ids)
    assert torch.equal(
        model.generate(ids, attention_mask=mask, **GREEDY), model.generate(ids, **GREEDY)
    )
    mask[0, :5] = mask[2, :7] = 0
    padded = model.generate(ids, attention_mask=mask, **GREEDY)
    for row, start in enumerate((5, 0, 7)):
        alone = model.generate(ids[row : row + 1, start:], **GREEDY)
        assert torch.equal(padded[row, start:], alone[0])
    other = ids.masked_fill(mask == 0, 0)  # what stands under the padding does not matter
    assert torch.equal(model.generate(other, attention_mask=mask, **GREEDY)[:, 8:], padded[:, 8:])


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ([1, 1, 0], r"zeros \(padding\) and then at least one 1 in each row, got \[1, 1, 0\]"),
        ([1, 0, 1], r"got \[1, 0, 1\] in row 1"),
        ([0, 0, 0], r"got \[0, 0, 0\] in row 1"),
        ([1, 1], r"attention_mask: wanted \[2, 3\], got \[2, 2\]"),
    ],
)
def test_masks_that_are_no_left_padding_are_refused(row: list[int], wanted: str) -> None:
    mask = torch.tensor([[1] * len(row), row])
    with pytest.raises(ValueError, match=wanted):
        make_model(None).generate(tokens(2, 3), attention_mask=mask, max_new_tokens=1)


def test_callback_gets_each_token_as_it_comes() -> None:
    model = make_model(None)
    seen: list[Tensor] = []
    result = model.generate(tokens(2, 4), callback=seen.append, max_new_tokens=5)
    assert torch.equal(torch.stack(seen, 1), result[:, 4:])


@EVERY_HYBRID
def test_generation_goes_on_from_a_cache_and_branches(hybrid: str | None) -> None:
    model = make_model(hybrid)
    text = tokens(2, 9)
    whole = model.generate(text, **GREEDY)
    with torch.no_grad():
        cache = model(text[:, :5], use_cache=True).cache
    branch = cache.clone()
    assert torch.equal(model.generate(text[:, 5:], cache=cache, **GREEDY)[:, 4:], whole[:, 9:])
    assert cache.position.tolist() == [9 + 5] * 2  # all but the last token
    assert branch.position.tolist() == [5, 5]
    other = tokens(2, 4, seed=9)
    expected = model.generate(torch.cat([text[:, :5], other], 1), **GREEDY)
    assert torch.equal(model.generate(other, cache=branch, **GREEDY)[:, 4:], expected[:, 9:])


@EVERY_HYBRID
def test_a_saved_cache_generates_the_same(tmp_path, hybrid: str | None) -> None:
    model = make_model(hybrid)
    text = tokens(2, 7)
    with torch.no_grad():
        cache = model(text[:, :6], use_cache=True).cache
    safetensors.torch.save_file(cache.state_dict(), tmp_path / "cache.safetensors")
    restored = AtlasCache()
    restored.load_state_dict(safetensors.torch.load_file(tmp_path / "cache.safetensors"))
    expected = model.generate(text[:, 6:], cache=cache, **GREEDY)
    assert torch.equal(model.generate(text[:, 6:], cache=restored, **GREEDY), expected)
    moved = restored.clone().to("meta")
    assert {tensor.device.type for tensor in moved.state_dict().values()} == {"meta"}
    assert {tensor.device.type for tensor in restored.state_dict().values()} == {"cpu"}


@EVERY_HYBRID
def test_memory_does_not_grow_while_generating(hybrid: str | None) -> None:
    """The cache keeps its bytes, and its very tensors, from the first new token on."""
    model = make_model(hybrid)
    cache = AtlasCache()
    seen: list[tuple[int, list[int]]] = []

    def look(_token: Tensor) -> None:
        addresses = [tensor.data_ptr() for tensor in cache.state_dict().values()]
        seen.append((cache.num_bytes, addresses))

    model.generate(tokens(2, 3), cache=cache, callback=look, max_new_tokens=40)
    assert len(seen) == 40 and all(entry == seen[0] for entry in seen)


def test_end_token_with_unequal_prompts() -> None:
    model = make_model("mag")
    ids = tokens(2, 6)
    mask = torch.tensor([[0, 0, 0, 1, 1, 1], [1] * 6])
    free = model.generate(ids, attention_mask=mask, **GREEDY)
    end = int(free[0, 7])
    stopped = model.generate(ids, attention_mask=mask, eos_token_id=end, **GREEDY)
    assert (stopped[0, 7:] == end).all()
    assert torch.equal(stopped[:, :8], free[:, :8])
