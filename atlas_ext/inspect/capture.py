"""What the rule of a memory layer receives while a model reads a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layers import MemoryAsContext, MemoryAsGate, OmegaMemory
from ..models import Atlas, DeepTransformer
from ..models.language_model import LanguageModel


@dataclass(frozen=True)
class Tokens:
    """The inputs of one head's rule, laid out as `omega_rule` takes them, with B = H = 1."""

    q: Tensor  # [1, T, 1, K]
    k: Tensor  # [1, T, 1, K]
    v: Tensor  # [1, T, 1, V]
    gamma: Tensor  # [1, T, 1, W]
    eta: Tensor  # [1, T, 1]
    log_alpha: Tensor | None  # [1, T, 1]
    log_theta: Tensor | None  # [1, T, 1]


def find_memory(model: LanguageModel, layer: int, head: int) -> OmegaMemory:
    """The memory layer of a block, wherever a hybrid keeps it.

    Raises:
        ValueError: the model has no such memory.
    """
    if isinstance(model, DeepTransformer):
        wanted = "an Atlas (a DeepTransformer's memory is a row for every token, it has no S_t)"
        raise error("model", wanted, f"a DeepTransformer ({model.config.variant})")
    if not isinstance(model, Atlas):
        raise error("model", "an Atlas", type(model).__name__)
    if not 0 <= layer < len(model.blocks):
        raise error("layer", f"0 to {len(model.blocks) - 1}", layer)
    mixer: Any = model.blocks[layer].memory
    hybrid = isinstance(mixer, MemoryAsGate | MemoryAsContext)
    memory: OmegaMemory = mixer.memory if hybrid else mixer
    if not 0 <= head < memory.num_heads:
        raise error("head", f"0 to {memory.num_heads - 1}", head)
    return memory


def capture_tokens(
    model: LanguageModel,
    memory: OmegaMemory,  # of a block of `model`
    input_ids: Tensor,  # [1, T]
    head: int,
) -> Tokens:
    """Runs the model, and keeps what this memory's rule receives for one head."""
    with _recorded_calls(memory) as calls:
        model(input_ids)
    parts = zip(*calls, strict=True)
    return Tokens(*(_join(part, head) for part in parts))


@contextmanager
def _recorded_calls(memory: OmegaMemory) -> Iterator[list[tuple[Tensor | None, ...]]]:
    """q, k, v and gates of each call of the rule; every segment of a MAC is a call."""
    calls: list[tuple[Tensor | None, ...]] = []

    def recorded(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(q: Tensor, k: Tensor, v: Tensor, gates: Any, *rest: Any) -> Any:
            calls.append((q, k, v, *gates))
            return method(q, k, v, gates, *rest)

        return call

    methods = ("_rule", "_update")  # whole sequences, and one token in place
    for name in methods:
        setattr(memory, name, recorded(getattr(memory, name)))
    try:
        yield calls
    finally:
        for name in methods:
            delattr(memory, name)


def _join(parts: tuple[Tensor | None, ...], head: int) -> Any:  # [1, T, 1, ...] or None
    tensors = [part[:, :, head : head + 1] for part in parts if part is not None]
    return torch.cat(tensors, 1) if tensors else None


def error(name: str, wanted: str, got: object) -> ValueError:
    """In the words of every error here."""
    return ValueError(f"inspect_memory: {name}: wanted {wanted}, got {got}")
