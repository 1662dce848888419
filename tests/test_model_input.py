"""Bad input to states, layers and models: a ValueError that names argument, wanted and got."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

import atlas_ext
from atlas_ext import ExpOmegaState, OmegaState
from atlas_ext.layers import OmegaMemory
from atlas_ext.models import Atlas, AtlasCache, AtlasConfig, DeepTransformer

SMALL: dict[str, Any] = {
    "vocab_size": 17, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "chunk_size": 4,
}  # fmt: skip
IDS = torch.arange(6).unsqueeze(0)
EXP: dict[str, Any] = {
    "num_sequences": 1, "num_heads": 2, "key_dim": 4, "value_dim": 3, "window": 2,
}  # fmt: skip
W0, W2 = torch.zeros(2, 5, 4), torch.zeros(2, 3, 5)


def model(**fields: Any) -> Atlas:
    return Atlas(AtlasConfig(**SMALL, **fields))


def test_bounds_of_packed_sequences() -> None:
    """Whichever layer sees them first."""
    for kind in (None, "mag", "mal", "mac"):
        net = model(variant="swla", hybrid=kind, window=2)
        for bounds in ([0, 5], [0, 7], [1, 6], [0, 4, 2, 6]):
            with pytest.raises(ValueError, match=r"cu_seqlens: wanted 0 to T = 6, never decr") as e:
                net(IDS, cu_seqlens=torch.tensor(bounds))
            assert str(bounds) in str(e.value)
        with pytest.raises(ValueError, match=r"cu_seqlens: wanted int32 or int64 \[N\+1\], got"):
            net(IDS, cu_seqlens=torch.tensor([0.0, 6.0]))


def cache_of(kind: str | None) -> AtlasCache:
    cache: AtlasCache = model(variant="swla", hybrid=kind, window=2)(IDS, use_cache=True).cache
    return cache


CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "labels": (lambda: model()(IDS, labels=IDS.float()), "labels: wanted int64 or int32"),
    "cache": (lambda: model()(IDS, cache="x"), "cache: wanted an AtlasCache, got str"),
    "kind of cache": (
        lambda: model(variant="swla", hybrid="mag")(IDS, cache=cache_of(None)),
        "MemoryAsGate: state: wanted a ParallelState, got MemoryState",
    ),
    "kind of cache, mac": (
        lambda: model(variant="swla", hybrid="mac")(IDS, cache=cache_of("mag")),
        "MemoryAsContext: state: wanted a ContextState, got ParallelState",
    ),
    "kind of cache, none": (
        lambda: model(variant="swla")(IDS, cache=cache_of("mal")),
        "OmegaMemory: state: wanted a MemoryState, got ParallelState",
    ),
    "temperature": (
        lambda: model().generate(IDS, max_new_tokens=2, temperature=math.nan),
        "temperature: wanted",
    ),
    "max_new_tokens": (
        lambda: model().generate(IDS, max_new_tokens=1.5),
        "max_new_tokens: wanted an integer",
    ),
    "eos": (
        lambda: model().generate(IDS, max_new_tokens=2, eos_token_id=[1, 2]),
        "eos_token_id: wanted None or",
    ),
    "norm_eps": (lambda: model(norm_eps=math.inf), "norm_eps: wanted a finite number above 0"),
    "window": (lambda: OmegaMemory(16, 2, window=0), "OmegaMemory: window: wanted an integer >= 1"),
    "width": (lambda: OmegaMemory(16, 2)(torch.zeros(1, 2, 8)), r"x: wanted \[B, T, 16\], got"),
    "exp tensor": (lambda: ExpOmegaState.init(W0, **EXP), "weights: wanted a tuple of matrices"),
    "tensor": (
        lambda: OmegaState.init(W0, num_sequences=1, window=1, key_dim=4, value_dim=5),
        "OmegaState.init: weights: wanted a tuple of matrices, got a Tensor",
    ),
    "capacity": (lambda: ExpOmegaState.init(None, **EXP, capacity=-1), "capacity: wanted an int"),
    "W2": (
        lambda: ExpOmegaState.init((W0, W2.mT), **EXP),
        r"weights\[1\]: wanted \[V, F\] = \[3, 5\] per head, got \[2, 5, 3\]",
    ),
    "W0": (
        lambda: ExpOmegaState.init((W0.mT, W2), **EXP),
        r"weights\[0\]: wanted \[F, K\] = \[4, 4\] per head, got \[2, 4, 5\]",
    ),
    "scale": (
        lambda: atlas_ext.exp_omega_rule(
            *torch.zeros(3, 1, 2, 1, 4), torch.ones(1, 2, 1, 1), torch.ones(1, 2, 1), scale=math.nan
        ),
        "exp_omega_rule: scale: wanted a finite number, got nan",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_error_names_the_argument(name: str) -> None:
    call, text = CALLS[name]
    with pytest.raises(ValueError, match=text):
        call()


def test_int32_tokens_are_their_own_labels() -> None:
    torch.manual_seed(0)
    for net in (model(), DeepTransformer(AtlasConfig(**SMALL, variant="dot"))):
        short = net(IDS.int(), labels=IDS.int()).loss
        assert torch.equal(short, net(IDS, labels=IDS).loss)


def test_presets_keep_the_width_of_heads() -> None:
    assert AtlasConfig.preset("atlas-tiny", hidden_size=256).num_heads == 16
    assert AtlasConfig.preset("atlas-tiny", num_heads=4).head_dim == 16
