"""newton_schulz and poly_features."""

from __future__ import annotations

import torch
from torch import Tensor

import atlas_ext
from atlas_ext import testing
from bench import eager, packages, roofline
from bench.cases.base import Case, Rival, Shapes, cases_of, shapes
from bench.compiled import compiled
from bench.timing import DIRECTIONS, Inputs

DIM = 64
MADE = 64  # matrices that are made; condition numbers cost an SVD each, so more repeat these
COMPILED = "torch.compile"


def conditioned(generator: torch.Generator, count: int, rows: int, columns: int) -> Tensor:
    x = testing.conditioned(generator, min(count, MADE), rows, columns)
    return x.repeat(-(-count // len(x)), 1, 1)[:count]


def schulz_rivals(targets: tuple[float, float] | tuple[None, None]) -> tuple[Rival, ...]:
    return (
        Rival("eager", lambda inputs: eager.newton_schulz(inputs["x"]), targets=targets),
        Rival(COMPILED, lambda inputs: compiled(eager.newton_schulz)(inputs["x"])),
    )


GRAM_NEWTON_SCHULZ = Rival(
    "gram-newton-schulz, float16",
    packages.gram_newton_schulz,
    directions=DIRECTIONS[:1],
    absent=packages.absent("gram_newton_schulz", "gram-newton-schulz"),
)
TORCH_MUON = Rival("torch.optim.Muon, bfloat16", packages.torch_muon, directions=DIRECTIONS[:1])


def schulz_cases(
    family: str, rows: int, columns: int, where: Shapes, device: str, *rivals: Rival
) -> list[Case]:
    """Batches of matrices [rows, columns]; the length counts them."""
    return cases_of(
        family,
        where,
        device,
        op="newton_schulz",
        unit="batch ",
        rivals=rivals,
        build=lambda generator, shape: {"x": conditioned(generator, shape.length, rows, columns)},
        forward_flops=lambda shape: roofline.newton_schulz_flops(shape.length, rows, columns, 5),
        orthogonalised=True,
    )


def single_cases(device: str) -> list[Case]:
    """One square matrix, as an optimiser has it; the length is its side."""
    where = shapes((128, 512, 1024), (256, 1024, 4096), 32)
    return cases_of(
        "one square matrix, 5 steps",
        where,
        device,
        op="newton_schulz",
        unit="side ",
        rivals=(*schulz_rivals((None, None)), TORCH_MUON, GRAM_NEWTON_SCHULZ),
        build=lambda generator, shape: {"x": conditioned(generator, 1, shape.length, shape.length)},
        forward_flops=lambda shape: roofline.newton_schulz_flops(1, shape.length, shape.length, 5),
        orthogonalised=True,
    )


def _copy(inputs: Inputs) -> Tensor:
    return inputs["x"].clone()


def _output_sized(inputs: Inputs) -> Inputs:
    """A tensor of the size of poly_features' output: what writing one costs at the least."""
    x = inputs["x"]
    return {"x": x.new_ones(x.shape[0], atlas_ext.poly_feature_dim(x.shape[1], 2))}


def compiled_features(inputs: Inputs) -> Tensor:
    return eager.poly_features(inputs["x"], compiled(eager.gathered_products))


def poly_cases(device: str) -> list[Case]:
    where = shapes((1024, 8192, 32768), (8192, 65536, 262144), 9)
    memcpy = Rival(
        "memcpy", _copy, inputs=_output_sized, directions=DIRECTIONS[:1], targets=(0.6, None)
    )
    return cases_of(
        f"degree 2, K{DIM}",
        where,
        device,
        op="poly_features",
        unit="rows ",
        rivals=(
            Rival(
                "eager, gather",
                lambda inputs: eager.poly_features(inputs["x"]),
                targets=(6.0, 6.0),
            ),
            Rival(COMPILED, compiled_features),
            memcpy,
        ),
        build=lambda generator, shape: {"x": testing.normal(generator, shape.length, DIM)},
        forward_flops=lambda shape: roofline.poly_features_flops(shape.length, DIM),
        options={"degree": 2},
        memory_bound=True,
    )


def cases(device: str) -> list[Case]:
    square = shapes((64, 512, 4096), (512, 2048, 16384), 3)
    elongated = shapes((64, 512, 2048), (512, 2048, 8192), 2)
    square_rivals = schulz_rivals((2.2, 2.0))
    elongated_rivals = schulz_rivals((None, None))
    return [
        *schulz_cases("64 × 64, 5 steps", 64, 64, square, device, *square_rivals),
        *schulz_cases(
            "64 × 153, 5 steps", 64, 153, elongated, device, *elongated_rivals, GRAM_NEWTON_SCHULZ
        ),
        *single_cases(device),
        *poly_cases(device),
    ]
