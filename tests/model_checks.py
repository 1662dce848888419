"""What every language model must do, whatever its variant and hybrid."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from atlas_ext.models import Atlas, AtlasCache, DeepTransformer

VOCAB, LENGTH = 61, 14
CLOSE = {"rtol": 2e-3, "atol": 5e-4}
Model = Atlas | DeepTransformer


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (batch, length), generator=generator)


def check_training_step(model: Model) -> None:
    ids = tokens()
    out = model(ids, labels=ids)
    assert out.logits.shape == (2, LENGTH, VOCAB) and out.cache is None
    assert abs(out.loss.item() - math.log(VOCAB)) < 0.2
    out.loss.backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name
    torch.optim.AdamW(model.parameters(), lr=3e-3).step()
    with torch.no_grad():
        assert model(ids, labels=ids).loss < out.loss


@torch.no_grad()
def check_pieces(model: Model, splits: tuple[int, ...]) -> None:
    """Prefill and decode, and pieces of any length, equal one pass."""
    ids = tokens()
    whole = model(ids).logits
    for split in splits:
        out = model(ids[:, :split], use_cache=True)
        rest = [model(ids[:, t : t + 1], cache=out.cache).logits for t in range(split, LENGTH)]
        torch.testing.assert_close(torch.cat([out.logits, *rest], 1), whole, **CLOSE)
    cache = AtlasCache()
    pieces = [model(piece, cache=cache).logits for piece in ids.split([1, 6, 1, 2, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), whole, **CLOSE)
    assert cache.position.tolist() == [LENGTH, LENGTH]


@torch.no_grad()
def check_packed(model: Model) -> None:
    """Packed equals separate, and goes on: packed, as rows, one token and three at a time."""
    lengths = [6, 0, 1, 9]
    ids = tokens(1, sum(lengths))
    bounds = F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0), (1, 0))
    out = model(ids, cu_seqlens=bounds, use_cache=True)
    pieces = ids.split(lengths, dim=1)
    alone = torch.cat([model(piece).logits for piece in pieces if piece.shape[1]], 1)
    torch.testing.assert_close(out.logits, alone, **CLOSE)
    step, further = tokens(1, 4, seed=2), tokens(4, 3, seed=3)
    twin = out.cache.clone()
    packed = model(step, cache=out.cache, cu_seqlens=torch.arange(5)).logits
    rows = model(step.mT, cache=twin).logits
    last = model(further, cache=twin).logits
    for i, piece in enumerate(pieces):
        text = torch.cat([piece, step[:, i : i + 1], further[i : i + 1]], 1)
        alone = model(text).logits
        torch.testing.assert_close(packed[:, i], alone[:, -4], **CLOSE)
        torch.testing.assert_close(rows[i], alone[0, -4:-3], **CLOSE)
        torch.testing.assert_close(last[i], alone[0, -3:], **CLOSE)


@torch.no_grad()
def check_causal(model: Model) -> None:
    """To the bit, for equal length."""
    ids = tokens()
    logits = model(ids).logits
    for t in (1, 5, LENGTH - 1):
        changed = torch.cat([ids[:, :t], tokens(seed=3)[:, t:]], 1)
        assert torch.equal(model(changed).logits[:, :t], logits[:, :t])


@torch.no_grad()
def check_saved(model: Model) -> None:
    """Model and cache survive their dictionaries; a cache can be branched and moved."""
    twin = type(model)(type(model.config)(**model.config.to_dict()))
    twin.load_state_dict(model.state_dict())
    cache = model(tokens(), use_cache=True).cache
    saved = cache.state_dict()
    storages = [t.untyped_storage().data_ptr() for t in saved.values() if t.numel()]
    assert len(set(storages)) == len(storages)
    restored = AtlasCache()
    restored.load_state_dict(saved)
    branch = cache.clone().to("cpu")
    step = tokens(length=1)
    expected = model(step, cache=cache).logits
    assert torch.equal(twin(step, cache=restored).logits, expected)
    assert branch.position.tolist() == [LENGTH, LENGTH]
    assert torch.equal(model(step, cache=branch).logits, expected)


def check_generation(model: Model) -> None:
    """Greedy generation equals repeated passes, also for prompts of unequal length."""
    ids = tokens(length=5)
    greedy = model.generate(ids, max_new_tokens=5, temperature=0)
    text = ids
    with torch.no_grad():
        for _ in range(5):
            text = torch.cat([text, model(text).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(greedy, text)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    both = model.generate(ids, max_new_tokens=5, temperature=0, attention_mask=mask)
    short = model.generate(ids[:1, 2:], max_new_tokens=5, temperature=0)
    assert torch.equal(both[1], greedy[1]) and torch.equal(both[0, 2:], short[0])
    assert torch.equal(both[:, :5], ids)


def check_autocast(model: Model) -> None:
    """bfloat16 on the CPU: trains, goes on from a cache, and stays close to float32."""
    ids = tokens()
    expected = model(ids).logits.detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(ids, labels=ids)
        with torch.no_grad():
            cache = model(ids[:, :7], use_cache=True).cache
            rest = [model(piece, cache=cache).logits for piece in (ids[:, 7:8], ids[:, 8:])]
    out.loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert out.logits.dtype == torch.bfloat16
    assert F.cosine_similarity(out.logits.float().flatten(), expected.flatten(), dim=0) > 0.97
    later = torch.cat(rest, 1).float().flatten()
    assert F.cosine_similarity(later, expected[:, 7:].flatten(), dim=0) > 0.97
