"""What one layer carries from one call to the next, and its tensors by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from ..state import ExpOmegaState, OmegaState

_OMEGA_FIELDS = OmegaState._fields
_EXP_FIELDS = (
    "keys", "coefficients", "momentum", "weights", "chunk_weights", "k_tail", "v_tail", "position",
)  # fmt: skip


class MemoryState(NamedTuple):
    """State of an `OmegaMemory` or `ExpOmegaMemory` layer: the memory and its convolution's tail.

    An `OmegaState` has a constant size; an `ExpOmegaState` grows with the text.
    """

    memory: OmegaState | ExpOmegaState
    conv: Tensor  # [N, conv_size-1, 3*H*K]

    @property
    def position(self) -> Tensor:
        """Tokens seen by each sequence, [N] int64."""
        return self.memory.position

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under a stable name, `memory.weights.0`, `conv`, ..."""
        fields = _OMEGA_FIELDS if isinstance(self.memory, OmegaState) else _EXP_FIELDS
        named: dict[str, Tensor] = {}
        for field in fields:
            named.update(_named(f"memory.{field}", getattr(self.memory, field)))
        named["conv"] = self.conv
        return named

    @staticmethod
    def from_tensors(named: Mapping[str, Tensor]) -> MemoryState:
        """Inverse of `tensors`.

        Raises:
            ValueError: a name is missing.
        """
        exponential = "memory.keys" in named
        groups = ["weights", "momentum", "chunk_weights", *["coefficients"] * exponential]
        single = ["k_tail", "v_tail", "position", *["keys"] * exponential]
        fields: dict[str, Any] = {name: _group(named, f"memory.{name}") for name in groups}
        fields["momentum"] = fields["momentum"] or None
        fields |= {name: _tensor(named, f"memory.{name}") for name in single}
        memory: OmegaState | ExpOmegaState
        if exponential:
            position = fields["position"]
            length = int(position.max()) if position.numel() else 0
            memory = ExpOmegaState(**fields, length=length)
        else:
            memory = OmegaState(**fields)
        return MemoryState(memory, _tensor(named, "conv"))

    def map(self, function: Callable[[Tensor], Tensor]) -> MemoryState:
        """The state with `function` applied to every tensor."""
        return MemoryState(self.memory.map(function), function(self.conv))


class AttentionState(NamedTuple):
    """State of a `SlidingWindowAttention`: the last W-1 keys (rotated) and values, oldest first."""

    k: Tensor  # [N, W-1, H, D], zeros before the start
    v: Tensor  # [N, W-1, H, D]
    position: Tensor  # [N] int64, tokens seen


class ParallelState(NamedTuple):
    """State of a layer that has a memory and a sliding-window attention (MAG, MAL)."""

    memory: MemoryState
    attention: AttentionState

    @property
    def position(self) -> Tensor:
        """Tokens seen by each sequence, [N] int64."""
        return self.memory.position

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under a stable name: the memory's, `attention.k`, ..."""
        named = self.memory.tensors()
        return named | {f"attention.{name}": t for name, t in self.attention._asdict().items()}

    @staticmethod
    def from_tensors(named: Mapping[str, Tensor]) -> ParallelState:
        """Inverse of `tensors`; ValueError where a name is missing."""
        fields = [_tensor(named, f"attention.{name}") for name in AttentionState._fields]
        return ParallelState(MemoryState.from_tensors(named), AttentionState(*fields))

    def map(self, function: Callable[[Tensor], Tensor]) -> ParallelState:
        """The state with `function` applied to every tensor."""
        attention = AttentionState(*(function(tensor) for tensor in self.attention))
        return ParallelState(self.memory.map(function), attention)


class ContextState(NamedTuple):
    """State of a `MemoryAsContext`: the memory, and the segment that the next token belongs to.

    C is the length of a segment. At a segment's start the segment part is empty: `weights` is then
    the memory as it is, and the rest zero.
    """

    memory: MemoryState
    weights: tuple[Tensor, ...]  # the memory at the segment's start, each [N, H, out, in]
    k: Tensor  # [N, C, H, D] keys of the segment so far
    v: Tensor  # [N, C, H, D]
    read_k: Tensor  # [N, C, H, D] keys of what its tokens read from the memory
    read_v: Tensor  # [N, C, H, D]

    @property
    def position(self) -> Tensor:
        """Tokens seen by each sequence, [N] int64."""
        return self.memory.position

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under a stable name: the memory's, `context.weights.0`, `context.k`, ..."""
        named = self.memory.tensors()
        for field in self._fields[1:]:
            named.update(_named(f"context.{field}", getattr(self, field)))
        return named

    @staticmethod
    def from_tensors(named: Mapping[str, Tensor]) -> ContextState:
        """Inverse of `tensors`; ValueError where a name is missing."""
        fields = [_tensor(named, f"context.{name}") for name in ContextState._fields[2:]]
        weights = _group(named, "context.weights")
        return ContextState(MemoryState.from_tensors(named), weights, *fields)

    def map(self, function: Callable[[Tensor], Tensor]) -> ContextState:
        """The state with `function` applied to every tensor."""
        weights = tuple(map(function, self.weights))
        rest = (function(tensor) for tensor in self[2:])
        return ContextState(self.memory.map(function), weights, *rest)


LayerState: TypeAlias = MemoryState | ParallelState | ContextState


def state_from_tensors(named: Mapping[str, Tensor]) -> LayerState:
    """The state of a layer from its `tensors()`, of the kind that the names say."""
    if any(name.startswith("attention.") for name in named):
        return ParallelState.from_tensors(named)
    if any(name.startswith("context.") for name in named):
        return ContextState.from_tensors(named)
    return MemoryState.from_tensors(named)


def _named(name: str, value: Tensor | tuple[Tensor, ...] | None) -> dict[str, Tensor]:
    if value is None:
        return {}
    if isinstance(value, tuple):
        return {f"{name}.{i}": tensor for i, tensor in enumerate(value)}
    return {name: value}


def _group(named: Mapping[str, Tensor], field: str) -> tuple[Tensor, ...]:
    count = sum(name.startswith(f"{field}.") for name in named)
    return tuple(_tensor(named, f"{field}.{i}") for i in range(count))


def _tensor(named: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in named:
        raise ValueError(f"MemoryState: tensors: wanted {name!r}, got {sorted(named)}")
    return named[name]
