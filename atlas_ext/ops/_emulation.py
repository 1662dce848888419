"""The emulated CUDA backend (docs/emulation.md): CUDA kernels run, unchanged, on CPU tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from atlas_ext._load import load_emulated
from atlas_ext.ops import _common


@contextmanager
def emulated(
    order: str = "forward",
    seed: int = 1,
    cp_async: str = "early",
    capability: int = 80,
) -> Iterator[Any]:
    """Make the public functions call the emulated CUDA operators, which take CPU tensors.

    Args:
        order: in which threads and blocks run: "forward", "reverse", or "random" with `seed`.
        cp_async: when copies land: "early" (at once), "late" (at their wait) or "random".
        capability: of the device to emulate, 10 * major + minor.

    Yields:
        The control module: `counters()`, `reset_counters()`, `trace(directory or None)`, ...
    """
    module = _module()
    before = module.settings()
    used = _common.use_emulated(True)
    try:
        module.set_order(order, seed)
        module.set_cp_async(cp_async)
        module.set_device(capability)
        yield module
    finally:
        _common.use_emulated(used)
        module.set_order(before["order"], before["seed"])
        module.set_cp_async(before["cp_async"])
        module.set_device(before["capability"], before["multiprocessors"], before["shared_kib"])


def has_emulated_kernel(name: str) -> bool:
    """Whether the operator `name` has a CUDA kernel, and so an emulated one."""
    _module()
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"{_common.EMULATED}::{name}", "CPU")


def _module() -> Any:
    module = load_emulated()
    _common.add_namespace(_common.EMULATED)
    return module
