"""Small transformers models and inputs for the tests of `atlas_ext.hf`."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("transformers", reason="needs the extra hf: pip install 'atlas_ext[hf]'")

from atlas_ext.hf import AtlasForCausalLM, AtlasHFConfig

VOCAB, PAD = 61, 0
SMALL = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window": 6,
    "chunk_size": 4, "ns_every": 4, "pad_token_id": PAD,
}  # fmt: skip
CLOSE = {"rtol": 2e-3, "atol": 5e-4}


def make_model(**overrides: object) -> AtlasForCausalLM:
    torch.manual_seed(0)
    return AtlasForCausalLM(AtlasHFConfig(**(SMALL | overrides))).eval()


def tokens(batch: int = 2, length: int = 14, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCAB, (batch, length), generator=generator)


def left_padded(
    lengths: list[int], side: str = "left"
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """A padded batch, its mask, and its rows without padding, [1, length] each."""
    rows = [tokens(1, length, seed=length) for length in lengths]
    width = max(lengths)
    ids, mask = torch.full((len(rows), width), PAD), torch.zeros(len(rows), width).long()
    for i, row in enumerate(rows):
        start = width - row.shape[1] if side == "left" else 0
        ids[i, start : start + row.shape[1]] = row[0]
        mask[i, start : start + row.shape[1]] = 1
    return ids, mask, rows
