"""What layers check of their arguments before they use them."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

State = TypeVar("State")


def check_bounds(op: str, x: Tensor, cu_seqlens: Tensor | None) -> None:
    """Raises ValueError unless cu_seqlens [N+1] are bounds of packed sequences in x [1, T, ...].

    Their values are read where that takes no synchronisation with a device, and not while
    compiling.
    """
    if cu_seqlens is None:
        return
    if x.shape[0] != 1:
        raise ValueError(f"{op}: x: wanted batch 1 with cu_seqlens, got {x.shape[0]}")
    integer = cu_seqlens.dtype in (torch.int32, torch.int64)
    if not integer or cu_seqlens.dim() != 1 or cu_seqlens.shape[0] == 0:
        raise ValueError(
            f"{op}: cu_seqlens: wanted int32 or int64 [N+1], got {cu_seqlens.dtype} "
            f"{list(cu_seqlens.shape)}"
        )
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    bounds = cu_seqlens.tolist()
    if bounds[0] != 0 or bounds[-1] != x.shape[1] or sorted(bounds) != bounds:
        raise ValueError(
            f"{op}: cu_seqlens: wanted 0 to T = {x.shape[1]}, never decreasing, got {bounds}"
        )


def check_state(op: str, state: object, kind: type[State]) -> State | None:
    """The state; raises ValueError where it is that of another kind of layer."""
    if state is not None and not isinstance(state, kind):
        raise ValueError(f"{op}: state: wanted a {kind.__name__}, got {type(state).__name__}")
    return state
