"""newton_schulz and poly_features."""

from __future__ import annotations

import torch
from torch import Tensor

from atlas_ext import testing
from bench import eager, roofline
from bench.cases.base import WITH_NEWTON_SCHULZ, OperatorCase, Rival
from bench.timing import Inputs


def _clone(inputs: Inputs) -> Tensor:
    """What writing a given output costs at the least."""
    return inputs["out"].clone()


def _features(rows: int) -> tuple[int, int]:
    return rows, 2145


CASES = (
    OperatorCase(
        name="newton_schulz [512, 64, 64], 5 steps",
        op="newton_schulz",
        build=lambda generator, batch: {"x": testing.conditioned(generator, batch, 64, 64)},
        length=512,
        check_length=8,
        rivals=(
            Rival("eager bmm loop", lambda i: eager.newton_schulz(i["x"]), targets=(2.2, 2.0)),
        ),
        forward_flops=lambda batch: roofline.newton_schulz_flops(batch, 64, 64, 5),
        out_shape=lambda batch: (batch, 64, 64),
        tolerance=WITH_NEWTON_SCHULZ,
    ),
    OperatorCase(
        name="poly_features [8192, 64], degree 2",
        op="poly_features",
        build=lambda generator, rows: {"x": testing.normal(generator, rows, 64)},
        length=8192,
        check_length=64,
        rivals=(
            Rival("index-gather", lambda i: eager.poly_features(i["x"]), targets=(6.0, 6.0)),
            Rival(
                "memcpy",
                _clone,
                inputs=lambda rows: {"out": torch.randn(_features(rows))},
                targets=(0.6, None),
                peak=False,
            ),
        ),
        forward_flops=lambda rows: roofline.poly_features_flops(rows, 64),
        out_shape=_features,
        options={"degree": 2},
        memory_bound=True,
    ),
)
