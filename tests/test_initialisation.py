"""Models before training: every preset's depth is finite, useful and trains."""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

from atlas_ext.layers import OmegaMemory
from atlas_ext.layers.memory_init import feature_norm
from atlas_ext.models import Atlas, AtlasConfig, DeepTransformer

VOCAB = 64
DEEP = ("titans", "dla", "omeganet", "atlas", "atlas++")
EXPONENTIAL = ("deep_transformer", "swdt", "dot")
Model = Atlas | DeepTransformer
DEPTHS = {"170m": 12, "340m": 24, "760m": 24, "1.3b": 18}


def narrow(variant: str, num_layers: int, hybrid: str | None = None) -> Model:
    """A preset's depth, memory and heads of 16, at a width of 32."""
    torch.manual_seed(0)
    config = AtlasConfig(
        vocab_size=VOCAB, hidden_size=32, num_heads=2, num_layers=num_layers, variant=variant,
        chunk_size=16, ns_every=16 if variant.startswith("atlas") else 1, hybrid=hybrid,
        swa_window=12, swa_heads=2,
    )  # fmt: skip
    return DeepTransformer(config) if variant in EXPONENTIAL else Atlas(config)


def rms(x: Tensor) -> float:
    return float(x.detach().square().mean().sqrt())


def watch(model: Model) -> list[tuple[float, float]]:
    """RMS of the residual stream and of the memory's share after each block, filled by a pass."""
    seen: list[tuple[float, float]] = []
    shares: list[float] = []

    def memory_hook(_module: nn.Module, _inputs: object, output: tuple[Tensor, object]) -> None:
        shares.append(rms(output[0]))

    def block_hook(_module: nn.Module, _inputs: object, output: tuple[Tensor, object]) -> None:
        seen.append((rms(output[0]), shares[-1]))

    for block in model.blocks:
        block.memory.register_forward_hook(memory_hook)
        block.register_forward_hook(block_hook)
    return seen


def tokens() -> Tensor:
    return torch.randint(VOCAB, (2, 32), generator=torch.Generator().manual_seed(1))


def test_depths_are_those_of_the_presets() -> None:
    for size, depth in DEPTHS.items():
        assert AtlasConfig.preset(f"atlas-{size}").num_layers == depth


@pytest.mark.parametrize("num_layers", sorted(set(DEPTHS.values())))
@pytest.mark.parametrize("variant", DEEP)
def test_first_passes_at_every_depth(variant: str, num_layers: int) -> None:
    check_first_passes(narrow(variant, num_layers))


@pytest.mark.parametrize("variant", ["swla", "atlas"])
@pytest.mark.parametrize("hybrid", ["mag", "mal", "mac"])
def test_first_passes_with_attention(hybrid: str, variant: str) -> None:
    check_first_passes(narrow(variant, 12, hybrid))


@pytest.mark.skipif(
    find_spec("atlas_ext.ops.exp_omega_rule") is None, reason="no compiled operator yet"
)
@pytest.mark.parametrize("variant", EXPONENTIAL)
def test_first_passes_of_deep_transformers(variant: str) -> None:
    check_first_passes(narrow(variant, 12))


def check_first_passes(model: Model) -> None:
    num_layers, ids = len(model.blocks), tokens()
    seen = watch(model)
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert abs(loss.item() - math.log(VOCAB)) < 0.1
    # the stream grows like the root of the depth, from the embedding's 0.02 to about 0.1
    streams, shares = zip(*seen, strict=True)
    assert all(0.02 < stream < 0.2 for stream in streams)
    assert streams[-1] < 5 * streams[0]
    # each memory adds its fair share, 1/sqrt(2 depth) of a fixed size
    assert all(0.05 < share * (2 * num_layers) ** 0.5 < 0.3 for share in shares)
    norms = [
        math.sqrt(sum(float(p.grad.square().sum()) for p in block.parameters()))
        for block in model.blocks
    ]
    assert all(math.isfinite(norm) for norm in norms)
    assert max(norms) < 50 * min(norms) and min(norms) > 0.1
    for block in model.blocks:
        weights = [p for name, p in block.named_parameters() if "memory_weights" in name]
        assert weights
        for weight in weights:  # M_0 learns in every block
            assert weight.grad.norm() > 1e-5 * weight.norm()

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(4):
        optimizer.step()
        optimizer.zero_grad()
        later = model(ids, labels=ids).loss
        later.backward()
    assert later < loss - 0.2


@pytest.mark.parametrize("variant", DEEP)
def test_a_text_of_one_token_does_not_diverge(variant: str) -> None:
    """All gradients of a chunk point the same way: the step meets the curvature at its worst."""
    model = narrow(variant, 2)
    with torch.no_grad():
        cache = model(torch.zeros(1, 1024, dtype=torch.long), use_cache=True).cache
    for layer, block in zip(cache.layers, model.blocks, strict=True):
        assert torch.isfinite(layer.conv).all()
        start = block.memory.memory_weights
        for weight, initial in zip(layer.memory.weights, start, strict=True):
            assert torch.linalg.norm(weight) < 3 * torch.linalg.norm(initial)


@pytest.mark.parametrize("degree", [None, 2])
@pytest.mark.parametrize("memory", ["mlp", "gated_mlp"])
@pytest.mark.parametrize("activation", ["gelu", "silu", "identity"])
def test_scale_of_a_deep_memory(memory: str, degree: int | None, activation: str) -> None:
    """Hidden vector of norm about 1; W2 hands an error back to the lifted key unamplified."""
    torch.manual_seed(0)
    layer = OmegaMemory(
        128, 8, memory=memory, degree=degree, activation=activation, window=1
    )  # K = 16
    first, *_, last = layer.memory_weights
    key = torch.randn(8, first.shape[-1], 1)
    key *= feature_norm(degree) / key.norm(dim=1, keepdim=True)
    functions = {"gelu": nn.functional.gelu, "silu": nn.functional.silu, "identity": lambda x: x}
    hidden = functions[activation](first @ key)
    if memory == "gated_mlp":
        hidden = hidden * (layer.memory_weights[1] @ key)
    assert 0.7 < hidden.norm(dim=1).mean() < 1.5
    slope = 1.0 if activation == "identity" else 0.5
    back = torch.linalg.matrix_norm(last, 2) * slope * feature_norm(degree)
    assert 0.8 < back.mean() < 1.2
    assert 0.1 < (last @ hidden).norm(dim=1).mean() < 1.0  # beside a residual of norm 1
