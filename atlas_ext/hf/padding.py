"""From padded rows to packed sequences and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Packing(NamedTuple):
    """Which tokens of a padded batch are real."""

    rows: int
    length: int
    tokens: Tensor  # [total] int64, places of the real tokens in the flattened batch
    cu_seqlens: Tensor  # [rows + 1] int64

    def pack(self, x: Tensor) -> Tensor:  # [rows, length, ...] -> [1, total, ...]
        """The real tokens, row after row."""
        return x.flatten(0, 1).index_select(0, self.tokens).unsqueeze(0)

    def unpack(self, x: Tensor) -> Tensor:  # [1, total, ...] -> [rows, length, ...]
        """The tokens in their places, zeros elsewhere."""
        flat = x.new_zeros(self.rows * self.length, *x.shape[2:])
        flat = flat.index_copy(0, self.tokens, x[0])
        return flat.view(self.rows, self.length, *x.shape[2:])


def find_padding(
    attention_mask: Tensor | None,  # [B, at least T]
    rows: int,
    length: int,
) -> Packing | None:
    """How to leave out the tokens whose mask is 0; None when there are none.

    The mask may cover tokens before the present ones; they are skipped.

    Raises:
        ValueError: the mask is not two-dimensional, or does not cover the tokens.
    """
    if attention_mask is None:
        return None
    if (
        attention_mask.dim() != 2
        or attention_mask.shape[0] != rows
        or attention_mask.shape[1] < length
    ):
        raise ValueError(
            f"AtlasForCausalLM: attention_mask: wanted [{rows}, {length} or more], "
            f"got {list(attention_mask.shape)}"
        )
    real = attention_mask[:, attention_mask.shape[1] - length :] != 0
    if bool(real.all()):
        return None
    bounds = F.pad(real.sum(1).cumsum(0), (1, 0))
    return Packing(rows, length, torch.nonzero(real.flatten()).squeeze(1), bounds)


def sequence_bounds(position_ids: Tensor) -> Tensor | None:  # [1, T] -> [N + 1]
    """Bounds of packed sequences from positions that start again at 0; None for one sequence."""
    if position_ids.dim() != 2 or position_ids.shape[0] != 1:
        return None
    starts = torch.nonzero(position_ids[0, 1:] == 0).squeeze(1) + 1
    if starts.shape[0] == 0:
        return None
    return F.pad(F.pad(starts, (1, 0)), (0, 1), value=position_ids.shape[1])
