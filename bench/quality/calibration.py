"""Step sizes of the memories before training."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from atlas_ext.layers import AtlasBlock
from atlas_ext.models.language_model import LanguageModel

SHARE = 0.4
GRID = tuple(10.0 ** (exponent / 4) for exponent in range(-14, 3))


@torch.no_grad()
def calibrate(model: LanguageModel, tokens: Tensor) -> list[float]:
    """Gives every memory the step size of GRID at which the writes of these tokens change what it
    reads by about SHARE, and returns the sizes.

    The layers' defaults suit long texts and stay far from divergence. On tasks of some ten tokens a
    memory that so hardly writes would not learn to recall in the few steps that there are here;
    one rule for all models replaces a search for each.

    Raises:
        ValueError: the tokens are fewer than the memory takes to write at all.
    """
    sizes = []
    for number, block in enumerate(model.blocks):
        if hasattr(block.memory, "step_size"):
            trace: list[Tensor] = []
            model.encode(model.embedding(tokens), trace=trace)  # the layers before have their step
            block.memory.step_size = best_step_size(block, trace[number])
            sizes.append(block.memory.step_size)
    return sizes


def best_step_size(block: AtlasBlock, x: Tensor) -> float:  # [B, T, hidden_size]
    reads: list[Tensor] = []
    hook = block.memory.norm.register_forward_pre_hook(lambda _, given: reads.append(given[0]))
    for size in (0.0, *GRID):
        block.memory.step_size = size
        block.memory(block.memory_norm(x))
    hook.remove()
    unwritten, *written = reads
    shares = [float((read - unwritten).norm() / unwritten.norm()) for read in written]
    if not any(0 < share < math.inf for share in shares):
        raise ValueError("calibrate: tokens: wanted some that are written to the memory, got none")
    far = [abs(math.log(x / SHARE)) if 0 < x < math.inf else math.inf for x in shares]
    return GRID[far.index(min(far))]
