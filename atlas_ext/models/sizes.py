"""What a configuration costs: parameters, state, arithmetic of Newton-Schulz."""

from __future__ import annotations

import math
from typing import Any

import torch

from ..layers.memory_init import memory_shapes
from .atlas import Atlas
from .config import AtlasConfig
from .deep_transformer import DeepTransformer
from .variants import ATTENTION_VARIANTS


def parameter_count(config: AtlasConfig) -> int:
    """Parameters of the model, counted on one that has no storage."""
    with torch.device("meta"):
        growing = config.variant in ATTENTION_VARIANTS
        model = DeepTransformer(config) if growing else Atlas(config)
    return sum(parameter.numel() for parameter in model.parameters())


def memory_weight_count(config: AtlasConfig) -> int:
    """Weights of the memories of all heads and layers: parameters (M_0), and what a sequence
    carries three times with momentum, twice without."""
    weights = sum(math.prod(shape) for shape in _shapes(config))
    return config.num_layers * config.num_heads * weights


def state_bytes(config: AtlasConfig, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of an `AtlasCache` per sequence, for activations of `dtype`: M_t, M_ref and the
    momentum in float32 (float64 for float64), the tails of window and convolution in `dtype`; for
    a hybrid, also its attention's keys and values ("mac": and the memory at the segment's start).

    Raises:
        ValueError: the cache of this variant grows with the text.
    """
    if config.variant in ATTENTION_VARIANTS:
        wanted = "a variant whose cache does not grow with the text"
        raise ValueError(f"state_bytes: config.variant: wanted {wanted}, got {config.variant!r}")
    sums = 8 if dtype == torch.float64 else 4
    copies = 2 + config.momentum + (config.hybrid == "mac")
    matrices = copies * memory_weight_count(config) * sums
    given: Any = config  # fields are filled in, where their types still allow None
    inner = given.num_heads * given.head_dim
    numbers = 2 * (given.window - 1) * inner + (given.conv_size - 1) * 3 * inner
    positions = 8
    if config.hybrid == "mac":
        numbers += 4 * given.swa_window * given.hidden_size
    elif config.hybrid is not None:
        numbers += 2 * (given.swa_window - 1) * given.hidden_size
        positions += 8
    return matrices + config.num_layers * int(numbers * dtype.itemsize + positions)


def newton_schulz_flops(rows: int, columns: int, steps: int) -> int:
    """FLOPs of Newton-Schulz of one matrix as written: X Xᵀ, its square, and the product with X."""
    rows, columns = min(rows, columns), max(rows, columns)
    return steps * (4 * rows * rows * columns + 2 * rows**3)


def newton_schulz_flops_per_token(config: AtlasConfig) -> float:
    """FLOPs of Newton-Schulz per token, head and layer in the forward pass, spread over the
    `ns_every` tokens of a write; times `num_heads` for a layer, and `num_layers` for the model."""
    steps: Any = config.ns_steps
    flops = sum(newton_schulz_flops(*shape, steps) for shape in _shapes(config))
    return flops / config.ns_every


def _shapes(config: AtlasConfig) -> tuple[tuple[int, int], ...]:
    names = ("memory", "head_dim", "degree", "expansion")
    options: dict[str, Any] = {name: getattr(config, name) for name in names}
    return memory_shapes(**options)
