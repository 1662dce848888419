"""Reading a memory that stands still."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.poly_features import poly_features
from .omega_memory import OmegaMemory

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "identity": lambda x: x,
}


def read_memory(
    layer: OmegaMemory,
    weights: tuple[Tensor, ...],  # of `layer`'s memory, each [N, H, out, in]
    q: Tensor,  # [N, T, H, K]
) -> Tensor:  # [N, T, H, V]
    """M(phi(q)) for every query, without a write; the feature map is the layer's."""
    options = layer.options
    dtype = torch.promote_types(q.dtype, weights[0].dtype)
    x, degree = q.to(dtype), options["degree"]
    if degree is not None and layer.feature_scales is not None:
        x = poly_features(x, degree, layer.feature_scales.to(dtype)).to(dtype)
    x = x.transpose(1, 2)  # [N, H, T, D]
    if len(weights) > 1:
        hidden = ACTIVATIONS[options["activation"]](x @ weights[0].mT)
        x = hidden if len(weights) == 2 else hidden * (x @ weights[1].mT)
    o = (x @ weights[-1].mT).transpose(1, 2).to(q.dtype)
    return q + o if options["residual"] else o
