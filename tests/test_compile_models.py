"""Whole blocks under torch.compile(fullgraph=True)."""

from __future__ import annotations

import pytest
import torch

from atlas_ext.layers import AtlasBlock
from atlas_ext.models import Atlas, AtlasConfig

HIDDEN = 16
SMALL = {
    "vocab_size": 9, "hidden_size": HIDDEN, "num_layers": 1, "num_heads": 2, "swa_window": 5,
    "swa_heads": 2, "chunk_size": 4,
}  # fmt: skip
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def make_block(variant: str, hybrid: str | None) -> AtlasBlock:
    torch.manual_seed(0)
    options = SMALL | ({"window": 3, "ns_every": 3} if variant == "atlas" else {})
    return Atlas(AtlasConfig(variant=variant, hybrid=hybrid, **options)).blocks[0]


def compare(block: AtlasBlock, backend: str) -> None:
    """Outputs, gradients, and a step from the state."""
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    x = torch.randn(2, 12, HIDDEN)
    results = []
    for function in (block, compiled):
        block.zero_grad()
        leaf = x.clone().requires_grad_()
        y, state = function(leaf, None, None, True)
        y.square().sum().backward()
        with torch.no_grad():
            step, _ = function(x[:, :1], state.map(torch.Tensor.detach), None, True)
        gradients = [parameter.grad for parameter in block.parameters()]
        results.append([y, step, leaf.grad, *gradients, *state.tensors().values()])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, **CLOSE)


@pytest.mark.parametrize("hybrid", [None, "mag", "mal", "mac"])
def test_blocks_compile(hybrid: str | None) -> None:
    torch.compiler.reset()
    compare(make_block("atlas", hybrid), "aot_eager")


@pytest.mark.parametrize("variant", ["swla", "titans"])
def test_other_memories_compile(variant: str) -> None:
    torch.compiler.reset()
    compare(make_block(variant, "mag"), "aot_eager")


@pytest.mark.parametrize("hybrid", ["mag", "mac"])
def test_autocast_compiles(hybrid: str) -> None:
    torch.compiler.reset()
    block = make_block("omeganet", hybrid)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 9, HIDDEN)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, (y, _) = block(x)[0], compiled(x)
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
def test_a_block_compiles_to_machine_code() -> None:
    torch.compiler.reset()
    block = make_block("swla", "mag")
    x = torch.randn(2, 12, HIDDEN)
    with torch.no_grad():
        y, _ = torch.compile(block, fullgraph=True)(x)
        torch.testing.assert_close(y, block(x)[0], **CLOSE)
