"""A deep memory over 100 000 tokens, piece by piece: it goes on learning, within bounds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_ext import OmegaState, omega_rule
from atlas_ext.testing import (
    memory_weights,
    named_tensors,
    normal,
    omega_tensors,
    relative_error,
)

CALLS, PIECE = 50, 2000
STATM = Path("/proc/self/statm")


def resident_bytes() -> int:
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not STATM.exists(), reason="needs /proc/self/statm")
@pytest.mark.parametrize(
    "bound, options", [(0.5, {}), (0.9, {"ns_steps": 5, "ns_every": 16})], ids=["plain", "muon"]
)
def test_a_stream_of_100k_tokens(bound: float, options: dict[str, Any]) -> None:
    """The values are a linear map of the keys: a memory that fades to zero would err by 1."""
    generator = torch.Generator().manual_seed(4)
    weights = memory_weights(generator, 2, V=8, D=8, F=16, memory="mlp")
    target = normal(generator, 2, 8, 8).float() / 8**0.5
    state = OmegaState.init(
        tuple(w.float() for w in weights),
        num_sequences=1,
        window=4,
        key_dim=8,
        value_dim=8,
        momentum=True,
    )
    for call in range(CALLS):
        tokens = omega_tensors(generator, (1, PIECE), H=2, K=8, V=8, W=4, theta=True)
        tokens = {name: tensor.float() for name, tensor in tokens.items()}
        tokens["eta"] = 0.1 * tokens["eta"]
        tokens["log_alpha"] = 0.02 * tokens["log_alpha"]
        tokens["v"] = torch.einsum("hvk,bthk->bthv", target, tokens["k"])
        with torch.no_grad():
            out, state = omega_rule(
                **tokens, initial_state=state, **options, chunk_size=16, output_final_state=True
            )
        largest = {name: float(t.abs().max()) for name, t in named_tensors(state).items()}
        assert largest.pop("position") == (call + 1) * PIECE
        assert all(value < 100 for value in largest.values()), (call, largest)
        error = relative_error(out, torch.einsum("hvk,bthk->bthv", target, tokens["q"]))
        assert error < (bound if call else 1.0), call
        if call == 10:
            before = resident_bytes()
    assert resident_bytes() - before < 4 * 2**20
