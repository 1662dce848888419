"""The states that carry a memory from one call to the next: plain data, no arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class OmegaState(NamedTuple):
    """Everything :func:`atlas_ext.omega_rule` needs to go on exactly, and nothing else.

    N sequences, H heads, window W; the weights' shapes are those of the memory
    (docs/math/omega_rule.md, section 1). ``chunk_weights`` is always the point at which the next
    token's gradients are taken, also where that token opens a chunk (there the operators return
    ``chunk_weights`` equal to ``weights``).
    """

    weights: tuple[Tensor, ...]  # M_t, each [N, H, out, in], float32 (float64 for float64 inputs)
    momentum: tuple[Tensor, ...] | None  # S_t, shapes of weights; None: the rule has no momentum
    chunk_weights: tuple[Tensor, ...]  # M_ref, shapes of weights
    k_tail: Tensor  # [N, W-1, H, K] the last W-1 keys, oldest first, zeros before the start
    v_tail: Tensor  # [N, W-1, H, V]
    position: Tensor  # [N] int64, tokens seen

    @classmethod
    def init(
        cls,
        weights: Sequence[Tensor],  # each [H, out, in] or [N, H, out, in]
        *,
        num_sequences: int,
        window: int,
        key_dim: int,
        value_dim: int,
        momentum: bool = False,
        dtype: torch.dtype | None = None,
        tail_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> OmegaState:
        """The state before the first token: M_0, zero momentum, an empty window.

        ``dtype`` defaults to float32, to float64 for float64 weights; ``tail_dtype`` to ``dtype``;
        ``device`` to the weights' own. Every tensor is a copy of its own (gradients flow to
        ``weights``). Raises ValueError for weights of a wrong rank or leading size and for a window
        below 1.
        """
        matrices = tuple(weights)
        if not 1 <= len(matrices) <= 3:
            raise ValueError(
                f"OmegaState.init: weights: wanted 1, 2 or 3 matrices, got {len(matrices)}"
            )
        if window < 1:
            raise ValueError(f"OmegaState.init: window: wanted an integer >= 1, got {window}")
        if num_sequences < 0:
            raise ValueError(
                f"OmegaState.init: num_sequences: wanted an integer >= 0, got {num_sequences}"
            )
        heads = matrices[0].shape[-3] if matrices[0].dim() >= 3 else -1
        for index, matrix in enumerate(matrices):
            shape = tuple(matrix.shape)
            if shape[:-2] not in ((heads,), (num_sequences, heads)):
                raise ValueError(
                    f"OmegaState.init: weights[{index}]: wanted [H, out, in] or "
                    f"[{num_sequences}, H, out, in] with one H for all, got {list(shape)}"
                )
        if dtype is None:
            dtype = torch.float64 if matrices[0].dtype == torch.float64 else torch.float32
        if device is None:
            device = matrices[0].device
        if tail_dtype is None:
            tail_dtype = dtype

        def own_copy(matrix: Tensor) -> Tensor:  # [N, H, out, in]
            expanded = matrix.to(device=device, dtype=dtype).expand(
                num_sequences, *matrix.shape[-3:]
            )
            return expanded.clone(memory_format=torch.contiguous_format)

        def tail(width: int) -> Tensor:  # [N, W-1, H, width]
            return torch.zeros(
                num_sequences, window - 1, heads, width, dtype=tail_dtype, device=device
            )

        current = tuple(own_copy(matrix) for matrix in matrices)
        return cls(
            weights=current,
            momentum=tuple(torch.zeros_like(matrix) for matrix in current) if momentum else None,
            chunk_weights=tuple(own_copy(matrix) for matrix in matrices),
            k_tail=tail(key_dim),
            v_tail=tail(value_dim),
            position=torch.zeros(num_sequences, dtype=torch.int64, device=device),
        )
