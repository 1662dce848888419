"""torch.compile's version of an eager rival: inductor, whole graphs, fixed shapes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

# Families, sizes and directions differ in shape, and each shape is a compilation of its own.
MOST_SHAPES = 1000


@functools.cache
def compiled(function: Callable[..., Any], dynamic: bool = False) -> Callable[..., Any]:
    """`dynamic`: sizes that grow from call to call are compiled once."""
    from torch._dynamo import config

    config.recompile_limit = config.accumulated_recompile_limit = MOST_SHAPES
    compiled_function: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=dynamic)
    return compiled_function
