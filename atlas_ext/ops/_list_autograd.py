"""Autograd of operators whose tensor arguments include lists: both rules over whole sequences.

The backward operator returns one list with the gradients of single tensors (no elements where
unwanted) and one list for each list argument; a bit mask says which are wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from atlas_ext.ops._common import grad_mask


class ListAutograd(NamedTuple):
    inputs: int  # tensor arguments of the schema, the first ones
    tensors: dict[int, int]  # position of an argument: place of its gradient in the first list
    lists: dict[int, int]  # position of a list: number of its list of gradients, from 0

    @property
    def differentiable(self) -> list[int]:
        """Positions in the order of the mask's bits."""
        return sorted([*self.tensors, *self.lists])

    def fake_grads(self, inputs: Sequence[Any], mask: int) -> tuple[list[Tensor], ...]:
        """What the backward operator returns for these tensor arguments."""
        grads = [inputs[0].new_empty(0) for _ in self.tensors]  # outputs must not alias
        lists: list[list[Tensor]] = [[] for _ in self.lists]
        for bit, index in enumerate(self.differentiable):
            value = inputs[index]
            if not mask >> bit & 1 or value is None:
                continue
            if index in self.lists:
                lists[self.lists[index]] = [x.new_empty(x.shape) for x in value]
            else:
                grads[self.tensors[index]] = value.new_empty(value.shape)
        return (grads, *lists)

    def save(self, ctx: Any, inputs: Sequence[Any], saved: Sequence[Tensor]) -> None:
        """Keeps the tensor arguments, and `saved` of the outputs, for the backward."""
        inputs = inputs[: self.inputs]
        ctx.counts = [len(x) if isinstance(x, list | tuple) else None for x in inputs]
        flat = [y for x in inputs for y in (x if isinstance(x, list | tuple) else (x,))]
        ctx.save_for_backward(*flat, *saved)
        ctx.set_materialize_grads(False)

    def restore(self, ctx: Any) -> tuple[list[Any], list[Tensor]]:
        """The tensor arguments and what was saved beside them."""
        saved = list(ctx.saved_tensors)
        inputs: list[Any] = []
        for count in ctx.counts:
            inputs.append(saved.pop(0) if count is None else [saved.pop(0) for _ in range(count)])
        return inputs, saved

    def mask(self, needed: Sequence[Any]) -> int:
        """The wanted gradients, from `ctx.needs_input_grad`."""
        wanted = (needed[i] for i in self.differentiable)
        return grad_mask([any(x) if isinstance(x, list | tuple) else bool(x) for x in wanted])

    def scatter(
        self, ctx: Any, grads: Sequence[Tensor], lists: Sequence[Sequence[Tensor]]
    ) -> tuple[Any, ...]:
        """The backward operator's results as autograd takes them: one for each argument."""
        result: list[Any] = [None] * len(ctx.needs_input_grad)
        for index, place in self.tensors.items():
            if ctx.needs_input_grad[index]:
                result[index] = grads[place]
        for index, place in self.lists.items():
            found: list[Any] = list(lists[place])
            result[index] = found or [None] * ctx.counts[index]
        return tuple(result)


def whole_grads(
    grads: Sequence[Tensor | None] | None, shapes: Sequence[Any], like: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """A list's gradients, zeros for tensors without one; empty where nothing came back."""
    if grads is None or all(grad is None for grad in grads):
        return []
    pairs = zip(grads, shapes, strict=True)
    return [like.new_zeros(s, dtype=dtype) if g is None else g for g, s in pairs]
