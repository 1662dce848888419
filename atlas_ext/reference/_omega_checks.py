"""Checks of the Omega rule's tensor arguments (ranks, shapes, dtypes, states, packed sequences)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..state import OmegaState
from ._checks import check, check_floating, check_shape


def check_tokens(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    gates: dict[str, Tensor | None],
    lead: str,  # "B, T, H", the letters of the leading dimensions
) -> None:
    """Ranks, shapes and dtypes of q, k, v, gamma and the scalars of every token."""
    rank = lead.count(",") + 2
    for name, value in (("q", q), ("k", k), ("v", v)):
        check_floating(op, name, value)
        width = "V" if name == "v" else "K"
        check(value.dim() == rank, op, name, f"[{lead}, {width}]", list(value.shape))
        check(
            value.shape[-1] >= 1, op, name, f"{width} >= 1 in [{lead}, {width}]", list(value.shape)
        )
        check(value.dtype == q.dtype, op, name, f"q's dtype {q.dtype}", value.dtype)
    leading = tuple(q.shape[:-1])
    check_shape(op, "k", k, f"[{lead}, K]", tuple(q.shape))
    check_shape(op, "v", v, f"[{lead}, V]", (*leading, v.shape[-1]))
    for name, gate in gates.items():
        if gate is None:
            continue
        check_floating(op, name, gate)
        wanted = f"float32 or q's dtype {q.dtype}"
        check(gate.dtype in (torch.float32, q.dtype), op, name, wanted, gate.dtype)
        if name == "gamma":
            good = gate.dim() == rank and tuple(gate.shape[:-1]) == leading and gate.shape[-1] >= 1
            check(good, op, name, f"[{lead}, W] = {[*leading, 'W']}, W >= 1", list(gate.shape))
        else:
            check_shape(op, name, gate, f"[{lead}]", leading)


@dataclass(frozen=True)
class MemoryShapes:
    """What the tokens say about the shapes of a memory and of its state."""

    num_sequences: int
    heads: int
    key_dim: int
    value_dim: int
    window: int
    degree: int | None

    @property
    def features(self) -> int:
        if self.degree is None:
            return self.key_dim
        return math.comb(self.key_dim + self.degree, self.degree)


def check_matrices(
    op: str,
    name: str,
    matrices: Sequence[Tensor],
    shapes: MemoryShapes,
    shared: bool,  # one memory for all sequences, [H, out, in], is allowed
    dtypes: tuple[torch.dtype, ...],
) -> None:
    check(isinstance(matrices, (tuple, list)), op, name, "a tuple", type(matrices).__name__)
    count = len(matrices)
    check(count in (1, 2, 3), op, name, "1, 2 or 3 matrices", count)
    for index, matrix in enumerate(matrices):
        check_floating(op, f"{name}[{index}]", matrix)
        least = 3 if shared else 4
        wanted = "[H, out, in] or [N, H, out, in]" if shared else "[N, H, out, in]"
        got = list(matrix.shape)
        check(least <= matrix.dim() <= 4, op, f"{name}[{index}]", wanted, got)
    hidden = matrices[0].shape[-2]
    first, last = (hidden, shapes.features), (shapes.value_dim, hidden)
    expected = {1: [(shapes.value_dim, shapes.features)], 2: [first, last], 3: [first, first, last]}
    leads = [(shapes.num_sequences, shapes.heads)] + ([(shapes.heads,)] if shared else [])
    for index, (matrix, sizes) in enumerate(zip(matrices, expected[count], strict=True)):
        allowed = [(*lead, *sizes) for lead in leads]
        wanted = "shape " + " or ".join(str(list(shape)) for shape in allowed)
        valid = tuple(matrix.shape) in allowed and min(sizes) >= 1
        check(valid, op, f"{name}[{index}]", wanted, list(matrix.shape))
        wanted = " or ".join(dict.fromkeys(str(dtype) for dtype in dtypes))
        check(matrix.dtype in dtypes, op, f"{name}[{index}]", wanted, matrix.dtype)


def check_state(
    op: str, name: str, state: OmegaState, shapes: MemoryShapes, dtype: torch.dtype
) -> None:
    check(isinstance(state, OmegaState), op, name, "an OmegaState", type(state).__name__)
    groups = {"weights": state.weights, "chunk_weights": state.chunk_weights}
    if state.momentum is not None:
        groups["momentum"] = state.momentum
    for field, matrices in groups.items():
        check_matrices(op, f"{name}.{field}", matrices, shapes, False, (dtype,))
        got = [list(matrix.shape) for matrix in matrices]
        wanted = [list(matrix.shape) for matrix in state.weights]
        check(got == wanted, op, f"{name}.{field}", f"the shapes of weights {wanted}", got)
    lead = (shapes.num_sequences, shapes.window - 1, shapes.heads)
    for field, tail in (("k_tail", state.k_tail), ("v_tail", state.v_tail)):
        width = shapes.key_dim if field == "k_tail" else shapes.value_dim
        letters = "[N, W-1, H, K]" if field == "k_tail" else "[N, W-1, H, V]"
        check_floating(op, f"{name}.{field}", tail)
        check_shape(op, f"{name}.{field}", tail, letters, (*lead, width))
    check_shape(op, f"{name}.position", state.position, "[N]", (shapes.num_sequences,))
    integer = state.position.dtype == torch.int64
    check(integer, op, f"{name}.position", "int64", state.position.dtype)


def sequence_bounds(
    op: str,
    q: Tensor,  # [B, T, H, K]
    cu_seqlens: Tensor | None,  # [N+1]
) -> list[int] | None:
    if cu_seqlens is None:
        return None
    check(isinstance(cu_seqlens, Tensor), op, "cu_seqlens", "a tensor", type(cu_seqlens).__name__)
    kind = (cu_seqlens.dim(), cu_seqlens.dtype)
    integer = kind in ((1, torch.int32), (1, torch.int64)) and cu_seqlens.numel() >= 1
    got = f"{list(cu_seqlens.shape)} of {cu_seqlens.dtype}"
    check(integer, op, "cu_seqlens", "[N+1] of int32 or int64", got)
    check(q.shape[0] == 1, op, "q", "B = 1 where cu_seqlens is given", list(q.shape))
    bounds: list[int] = cu_seqlens.tolist()
    rising = all(low <= high for low, high in itertools.pairwise(bounds))
    valid = bounds[0] == 0 and bounds[-1] == q.shape[1] and rising
    check(valid, op, "cu_seqlens", f"0 to T = {q.shape[1]}, never decreasing", bounds)
    return bounds
