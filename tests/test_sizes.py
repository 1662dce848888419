"""What a configuration costs, and the table of it in docs/models.md."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from atlas_ext.models import Atlas, AtlasConfig
from atlas_ext.models.sizes import (
    memory_weight_count,
    newton_schulz_flops,
    newton_schulz_flops_per_token,
    parameter_count,
    state_bytes,
)

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
DEEP = ("titans", "dla", "omeganet", "atlas", "atlas++")
# parameters that the name promises, and the least and most that ours has of them
NAMED = {"170m": (170e6, 0.8, 1.0), "340m": (340e6, 1.1, 1.4), "760m": (760e6, 1.1, 1.3)}
NAMED["1.3b"] = (1.3e9, 0.8, 1.0)


@pytest.mark.parametrize("size", NAMED)
@pytest.mark.parametrize("variant", DEEP)
def test_presets_have_about_the_size_of_their_name(variant: str, size: str) -> None:
    with torch.device("meta"):
        model = Atlas(AtlasConfig.preset(f"{variant}-{size}"))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert count == parameter_count(model.config)
    named, least, most = NAMED[size]
    assert least * named < count < most * named


@pytest.mark.parametrize("variant", ["delta", "swla", *DEEP])
def test_state_bytes_are_those_of_a_cache(variant: str) -> None:
    config = AtlasConfig(
        vocab_size=9, hidden_size=24, num_heads=3, num_layers=2, variant=variant, chunk_size=4
    )
    model = Atlas(config)
    with torch.no_grad():
        for dtype in (torch.float32, torch.bfloat16):
            cache = model.to(dtype)(torch.zeros(2, 5, dtype=torch.long), use_cache=True).cache
            assert cache.num_bytes == 2 * state_bytes(config, dtype)
    weights = [w for block in model.blocks for w in block.memory.memory_weights]
    assert memory_weight_count(config) == sum(weight.numel() for weight in weights)


def test_newton_schulz_flops() -> None:
    # one step of a 2 × 3 matrix: X Xᵀ 2·2·2·3, its square 2·2·2·2, times X 2·2·2·3
    assert newton_schulz_flops(2, 3, steps=1) == 24 + 16 + 24
    assert newton_schulz_flops(3, 2, steps=5) == 5 * newton_schulz_flops(2, 3, steps=1)
    config = AtlasConfig(vocab_size=9, num_heads=16, ns_every=1)  # K = 16, F = 64, D = 153
    both = newton_schulz_flops(64, 153, 5) + newton_schulz_flops(16, 64, 5)
    assert newton_schulz_flops_per_token(config) == both == 15_523_840
    config = AtlasConfig(vocab_size=9, num_heads=16, ns_every=16)
    assert newton_schulz_flops_per_token(config) == both / 16
    assert newton_schulz_flops_per_token(AtlasConfig(vocab_size=9, variant="titans")) == 0


def rows() -> list[list[str]]:
    """Cells of the page's table of presets."""
    lines = re.findall(r"^\| `([a-z+]+-[\d.]+[mb])` \|(.*)\|$", PAGE.read_text(), re.MULTILINE)
    return [[name, *(cell.strip() for cell in rest.split("|"))] for name, rest in lines]


def test_the_page_lists_every_deep_preset() -> None:
    assert [row[0] for row in rows()] == [f"{v}-{size}" for size in NAMED for v in DEEP]


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_the_page_says_what_the_functions_say(row: list[str]) -> None:
    config = AtlasConfig.preset(row[0])
    flops = newton_schulz_flops_per_token(config)
    millions = [
        parameter_count(config),
        memory_weight_count(config),
        state_bytes(config),
        flops,
        flops * config.num_heads,
    ]
    shape = f"{config.num_layers} × {config.hidden_size}"
    assert row[2:4] == [shape, f"{config.num_heads} × {config.head_dim}"]
    for cell, value in zip(row[4:], millions, strict=True):
        printed = 0.0 if cell == "–" else float(cell.replace(" ", ""))
        assert math.isclose(printed, value / 1e6, abs_tol=0.05), row
