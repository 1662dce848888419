"""An `AtlasCache` that transformers' generation loop can carry."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Cache

from ..models import AtlasCache


class AtlasHFCache(Cache):
    """Wraps the model's own cache, `atlas`; that of an `Atlas` does not grow with the text.

    It counts what it has seen, padding included, as transformers does. It cannot be cropped: a
    memory does not forget the last token again, so assisted generation is not possible.
    """

    def __init__(self, atlas: AtlasCache | None = None, seen: int = 0) -> None:
        super().__init__(layers=[])
        self.atlas = AtlasCache() if atlas is None else atlas
        self.seen = seen

    def __repr__(self) -> str:
        return f"AtlasHFCache(seen={self.seen}, {self.atlas!r})"

    def __len__(self) -> int:
        return len(self.atlas.layers)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens seen by each row, padding included."""
        return self.seen

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is no limit."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length of an attention mask that covers everything, and where it starts."""
        return self.seen + query_length, 0

    def has_previous_state(
        self, layer_idx: int | None = None, state_idx: int | None = None
    ) -> bool:
        """Whether anything was seen."""
        return len(self) > 0

    def reset(self) -> None:
        """Back to the start of a sequence."""
        self.atlas.layers = []
        self.seen = 0

    def reorder_cache(self, beam_idx: Tensor) -> None:  # [N]
        """Row i becomes what row `beam_idx[i]` was."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:  # [M]
        """Keeps the rows named, in that order."""

        def select(tensor: Tensor) -> Tensor:
            return tensor.index_select(0, indices.to(tensor.device))

        self.atlas.layers = [layer.map(select) for layer in self.atlas.layers]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row `repeats` times, one after the other."""
        if self.atlas.position is not None:
            rows = torch.arange(self.batch_size, device=self.atlas.position.device)
            self.batch_select_indices(rows.repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> NoReturn:
        """Not possible.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"AtlasHFCache: crop: wanted a cache that can go back, got a memory and "
            f"{tokens_to_remove} tokens to take from it; use a copy.deepcopy made before them"
        )

    def activate_past_recording(self) -> NoReturn:
        """Not possible, for the reason that `crop` is not; raises NotImplementedError."""
        self.crop(0)

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Not possible: there are no keys and values; raises NotImplementedError."""
        raise NotImplementedError(
            "AtlasHFCache: update: wanted nothing, the model writes it itself"
        )

    @property
    def batch_size(self) -> int:
        """Rows; -1 when empty."""
        return -1 if self.atlas.position is None else self.atlas.position.shape[0]

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_initialized(self) -> bool:
        return len(self) > 0

    @property
    def is_croppable(self) -> bool:
        return False

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self)

    @property
    def is_linear(self) -> list[bool]:
        # False although the memory is recurrent: generate() then cuts off the tokens already seen
        return [False] * len(self)

    @property
    def is_dummy(self) -> list[bool]:
        return [False] * len(self)
