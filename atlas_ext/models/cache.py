"""What a model carries from one call to the next."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..layers import LayerState
from ..layers.state import state_from_tensors


class AtlasCache:
    """The states of all layers, complete: going on from it equals never having stopped.

    Its size does not depend on the length of the text for an `Atlas`; that of a `DeepTransformer`
    grows like a key-value cache. A model updates the cache it is given in place. An empty cache
    stands for the start of a sequence and is filled by the first call.
    """

    def __init__(self, layers: list[LayerState] | None = None) -> None:
        self.layers: list[LayerState] = [] if layers is None else list(layers)

    def __repr__(self) -> str:
        return f"AtlasCache(layers={len(self.layers)}, bytes={self.num_bytes})"

    @property
    def num_bytes(self) -> int:
        """Bytes held by the tensors."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    @property
    def position(self) -> Tensor | None:
        """Tokens seen by each sequence, [N] int64; None when empty."""
        return self.layers[0].position if self.layers else None

    def clone(self) -> AtlasCache:
        """A copy that shares no memory with this cache."""
        return AtlasCache([layer.map(torch.clone) for layer in self.layers])

    def detach(self) -> AtlasCache:
        """Cuts the autograd history (truncated backpropagation through time); returns itself."""
        return self._replace(torch.detach)

    def to(self, device: torch.device | str) -> AtlasCache:
        """Moves the cache, as `torch.nn.Module.to` moves a module; returns itself."""
        return self._replace(lambda tensor: tensor.to(device))

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor under a name, `layers.0.memory.weights.0`, ...; none share memory."""
        return {
            f"layers.{i}.{name}": tensor
            for i, layer in enumerate(self.layers)
            for name, tensor in layer.tensors().items()
        }

    def load_state_dict(self, state_dict: Mapping[str, Tensor]) -> None:
        """Takes copies of the tensors of a `state_dict`, whatever the cache held before.

        Raises:
            ValueError: a name is malformed or missing.
        """
        grouped: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state_dict.items():
            prefix, _, rest = name.partition(".")
            index, _, key = rest.partition(".")
            if prefix != "layers" or not index.isdigit() or not key:
                raise ValueError(
                    f"AtlasCache: state_dict: wanted names 'layers.<n>.<tensor>', got {name!r}"
                )
            grouped.setdefault(int(index), {})[key] = tensor.clone()
        if sorted(grouped) != list(range(len(grouped))):
            raise ValueError(
                f"AtlasCache: state_dict: wanted layers 0..{len(grouped) - 1}, "
                f"got {sorted(grouped)}"
            )
        self.layers = [state_from_tensors(grouped[i]) for i in range(len(grouped))]

    def _replace(self, function: Callable[[Tensor], Tensor]) -> AtlasCache:
        self.layers = [layer.map(function) for layer in self.layers]
        return self
