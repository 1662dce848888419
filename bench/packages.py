"""Rivals from packages that need not be there: torch's Muon, gram-newton-schulz, fla.

titans-pytorch takes part with a layer (cases/layer.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from bench.eager.small import EPS, MUON
from bench.timing import Inputs


def absent(module: str, package: str) -> str:
    """Why it cannot take part; "": it can."""
    return "" if find_spec(module) is not None else f"{package} is not installed"


def torch_muon(inputs: Inputs) -> Tensor:
    """torch.optim.Muon's own iteration: one matrix, multiplied in bfloat16."""
    from torch.optim._muon import _zeropower_via_newtonschulz

    x = inputs["x"].squeeze(0)
    return _zeropower_via_newtonschulz(x, MUON, 5, EPS).unsqueeze(0).to(x.dtype)


@functools.cache
def _gram_newton_schulz(on_gpu: bool) -> Callable[[Tensor], Tensor]:
    from gram_newton_schulz import GramNewtonSchulz

    options: dict[str, Any] = {"ns_coefficients": [list(MUON)] * 5}
    if not on_gpu:  # its kernels and CUDA graphs are for GPUs
        options |= {"ns_use_kernels": False, "compile_kwargs": {"fullgraph": True}}
    found: Callable[[Tensor], Tensor] = GramNewtonSchulz(**options)
    return found


def gram_newton_schulz(inputs: Inputs) -> Tensor:
    """The package with Muon's coefficients: float16 inside, its kernels where they can run."""
    x = inputs["x"]
    return _gram_newton_schulz(x.is_cuda)(x)


def delta_inputs(inputs: Inputs) -> Inputs:
    """The same q, k, v; eta is the step."""
    held = {name: inputs[name] for name in ("q", "k", "v")}
    return held | {"beta": inputs["eta"].to(inputs["q"].dtype)}


def gated_delta_inputs(inputs: Inputs) -> Inputs:
    """And log_alpha the decay."""
    return delta_inputs(inputs) | {"g": inputs["log_alpha"]}


def delta_rule(inputs: Inputs) -> Tensor:
    from fla.ops.delta_rule import chunk_delta_rule

    out: Tensor = chunk_delta_rule(**inputs)[0]
    return out


def gated_delta_rule(inputs: Inputs) -> Tensor:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    out: Tensor = chunk_gated_delta_rule(**inputs)[0]
    return out


def version(package: str) -> str | None:
    try:
        return installed(package)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Of the packages that took part, or might have."""
    names = ("titans-pytorch", "flash-linear-attention", "gram-newton-schulz", "triton")
    found = {name: version(name) for name in names}
    return {"torch": torch.__version__} | {n: v for n, v in found.items() if v is not None}
