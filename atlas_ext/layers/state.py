"""What one memory layer carries from one call to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor

from ..state import OmegaState


class MemoryState(NamedTuple):
    """State of an `OmegaMemory` layer: the memory itself and the tail of its convolution."""

    memory: OmegaState
    conv: Tensor  # [N, conv_size-1, 3*H*K]

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under a stable name, `memory.weights.0`, `conv`, ..."""
        named: dict[str, Tensor] = {}
        for field, value in self.memory._asdict().items():
            if isinstance(value, tuple):
                named.update({f"memory.{field}.{i}": tensor for i, tensor in enumerate(value)})
            elif value is not None:
                named[f"memory.{field}"] = value
        named["conv"] = self.conv
        return named

    @staticmethod
    def from_tensors(named: Mapping[str, Tensor]) -> MemoryState:
        """Inverse of `tensors`.

        Raises:
            ValueError: a name is missing.
        """

        def group(field: str) -> tuple[Tensor, ...]:
            count = sum(name.startswith(f"memory.{field}.") for name in named)
            return tuple(named[f"memory.{field}.{i}"] for i in range(count))

        try:
            memory = OmegaState(
                weights=group("weights"),
                momentum=group("momentum") or None,
                chunk_weights=group("chunk_weights"),
                k_tail=named["memory.k_tail"],
                v_tail=named["memory.v_tail"],
                position=named["memory.position"],
            )
            return MemoryState(memory, named["conv"])
        except KeyError as error:
            raise ValueError(
                f"MemoryState: tensors: wanted {error.args[0]!r}, got {sorted(named)}"
            ) from None

    def map(self, function: Callable[[Tensor], Tensor]) -> MemoryState:
        """The state with `function` applied to every tensor."""
        return self.from_tensors({name: function(t) for name, t in self.tensors().items()})
