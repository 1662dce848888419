"""The registry of op cases: inputs, shapes with the reason for each, reference, tolerances.

Tests and benchmarks draw their inputs from here: a shape worth checking is checked everywhere. ::

    for case in cases("omega_rule"):
        inputs = case.inputs(torch.float32)
        outputs, expected = case.run(inputs), case.run_reference(wide_inputs(inputs))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from atlas_ext._case import (
    DTYPES,
    Case,
    Inputs,
    conditioned,
    cotangents,
    fused,
    gradients,
    linear_weights,
    map_tensors,
    memory_weights,
    named_tensors,
    normal,
    omega_state,
    omega_tensors,
    relative_error,
    require_grad,
    run_in_place,
    uniform,
    wide_inputs,
)
from atlas_ext._exp_omega_cases import EXP_OMEGA_CASES, exp_omega_state
from atlas_ext.ops._emulation import emulated, has_emulated_kernel
from atlas_ext.ops.poly_features import poly_feature_dim

__all__ = [
    "CASES",
    "DTYPES",
    "Case",
    "Inputs",
    "cases",
    "conditioned",
    "cotangents",
    "emulated",
    "exp_omega_state",
    "gradients",
    "has_emulated_kernel",
    "linear_weights",
    "map_tensors",
    "memory_weights",
    "named_tensors",
    "normal",
    "omega_state",
    "omega_tensors",
    "relative_error",
    "require_grad",
    "run_in_place",
    "uniform",
    "wide_inputs",
]


def _transposed(inputs: Inputs) -> Inputs:
    return {**inputs, "x": inputs["x"].mT.contiguous().mT}


def _every_other(inputs: Inputs) -> Inputs:
    return {**inputs, "x": inputs["x"].repeat_interleave(2, dim=-1)[..., ::2]}


def _poly(name: str, reason: str, shape: Sequence[int], degree: int = 2, **extra: Any) -> Case:
    with_scales = extra.pop("scales", True)

    def build(generator: torch.Generator) -> Inputs:
        inputs = {"x": normal(generator, *shape)}
        if with_scales:
            inputs["scales"] = uniform(generator, 0.3, 1.2, degree + 1)
        return inputs

    return Case("poly_features", name, reason, build, {"degree": degree}, **extra)


def _schulz(
    name: str,
    reason: str,
    shape: Sequence[int],
    *,
    table: int = 0,
    layout: Callable[[Inputs], Inputs] | None = None,
    thorough: bool = False,
    **options: Any,
) -> Case:
    def build(generator: torch.Generator) -> Inputs:
        inputs = {"x": 3.0 * conditioned(generator, *shape)}
        if table:
            rows = torch.tensor([[2.5, -2.6, 1.0]], dtype=torch.float64).repeat(table, 1)
            inputs["schedule"] = rows + 0.1 * normal(generator, table, 3)
        return inputs

    if table:
        options["steps"] = table
    extra = {"layout": layout, "thorough": thorough}
    return Case("newton_schulz", name, reason, build, options, orthogonalised=True, **extra)  # type: ignore[arg-type]


def _omega(
    name: str,
    reason: str,
    lead: tuple[int, int],  # (B, T)
    *,
    H: int = 2,
    K: int = 4,
    V: int = 3,
    W: int = 3,
    F: int = 6,
    memory: str = "linear",
    alpha: bool = True,
    theta: bool = False,
    scales: bool = False,
    per_sequence: bool = False,
    lengths: Sequence[int] | None = None,  # packed sequences
    positions: Sequence[int] | None = None,  # start from a state
    table: int = 0,
    layout: Callable[[Inputs], Inputs] | None = None,
    gates_in_dtype: bool = False,
    thorough: bool = False,
    **options: Any,
) -> Case:
    degree = options.get("degree")
    D = poly_feature_dim(K, degree) if degree else K

    def build(generator: torch.Generator) -> Inputs:
        sizes: dict[str, Any] = {"H": H, "K": K, "V": V, "W": W}
        inputs = omega_tensors(
            generator, lead, **sizes, alpha=alpha, theta=theta, scales=degree if scales else None
        )
        if positions is not None:
            kind: dict[str, Any] = {"D": D, "F": F, "memory": memory, "momentum": theta}
            inputs["initial_state"] = omega_state(generator, positions, **sizes, **kind)
        else:
            count = len(lengths) if lengths is not None else lead[0]
            each = (count, H) if per_sequence else (H,)
            inputs["weights"] = memory_weights(generator, *each, V=V, D=D, F=F, memory=memory)
        if lengths is not None:
            ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
            inputs["cu_seqlens"] = ends
        if table:
            rows = torch.tensor([[3.0, -3.6, 1.6]], dtype=torch.float64).repeat(table, 1)
            inputs["ns_schedule"] = rows + 0.1 * normal(generator, table, 3)
        return inputs

    if table:
        options["ns_steps"] = table
    options.setdefault("output_final_state", True)
    muon = options.get("ns_steps", 0) > 0
    extra = {"layout": layout, "gates_in_dtype": gates_in_dtype, "thorough": thorough}
    return Case("omega_rule", name, reason, build, options, orthogonalised=muon, **extra)  # type: ignore[arg-type]


def _update(
    name: str,
    reason: str,
    positions: Sequence[int],
    *,
    K: int = 4,
    V: int = 3,
    W: int = 3,
    F: int = 6,
    memory: str = "linear",
    theta: bool = False,
    scales: bool = False,
    indices: Sequence[int] | None = None,
    thorough: bool = False,
    **options: Any,
) -> Case:
    degree = options.get("degree")
    D = poly_feature_dim(K, degree) if degree else K

    def build(generator: torch.Generator) -> Inputs:
        rows = len(positions) if indices is None else len(indices)
        sizes: dict[str, Any] = {"H": 2, "K": K, "V": V, "W": W}
        inputs = omega_tensors(
            generator, (rows,), **sizes, theta=theta, scales=degree if scales else None
        )
        kind: dict[str, Any] = {"D": D, "F": F, "memory": memory, "momentum": theta}
        inputs["state"] = omega_state(generator, positions, **sizes, **kind)
        if indices is not None:
            inputs["state_indices"] = torch.tensor(indices, dtype=torch.int64)
        return inputs

    muon = options.get("ns_steps", 0) > 0
    extra = {"orthogonalised": muon, "thorough": thorough}
    return Case("omega_rule_update", name, reason, build, options, **extra)


# fmt: off
CASES: list[Case] = [
    _poly("degree1", "the shortest monomials; one key dimension", (3, 1), 1),
    _poly("degree2", "odd sizes, two batch dimensions", (2, 3, 5), 2, thorough=True),
    _poly("degree3", "default scales", (4, 4), 3, scales=False, thorough=True),
    _poly("degree4", "the highest degree", (2, 3), 4),
    _poly("lanes", "more features than vector lanes, ragged ends", (3, 19), 2),
    _poly("lanes3", "inner rows of every length at degree 3", (2, 11), 3),
    _poly("vector", "no batch dimension", (6,), 2),
    _poly("strided", "last dimension not contiguous", (3, 5), 2, layout=_every_other),
    _poly("empty", "no rows", (0, 4), 2),
    _schulz("square", "batch of squares, the default options", (3, 4, 4), thorough=True),
    _schulz("tall", "transposed inside; paper scale", (2, 7, 3), scale="shape", thorough=True),
    _schulz("wide", "wider than vector lanes; rms scale", (2, 2, 5, 19), scale="rms"),
    _schulz("lanes", "ragged blocks in both directions", (33, 17), steps=3),
    _schulz("polar", "past the end of the table", (2, 4, 6), steps=9, schedule="polar_express"),
    _schulz("table", "custom coefficients, one step", (5, 4), table=1),
    _schulz("table4", "a different row at every step", (2, 4, 5), table=4),
    _schulz("eps", "an eps that counts", (2, 3, 4), steps=2, eps=0.5),
    _schulz("scalar", "one by one (the gradient is all eps)", (4, 1, 1), eps=0.5),
    _schulz("strided", "column major", (2, 5, 6), layout=_transposed),
    _schulz("empty", "no matrices", (0, 4, 3)),
    _omega("recurrence", "C = 1 is the exact recurrence", (2, 6), W=2, theta=True, chunk_size=1),
    _omega("ragged", "T no multiple of C, odd sizes, weights per sequence", (2, 11), K=5, W=4,
           theta=True, per_sequence=True, chunk_size=4, thorough=True),
    _omega("wide_window", "W > C: the overhang spans chunks; no decay", (1, 11), W=8, alpha=False,
           objective="dot", chunk_size=3),
    _omega("one_token", "T = 1, W = 1, nothing optional", (2, 1), W=1, alpha=False,
           output_final_state=False, thorough=True),
    _omega("short", "T < C with features and learned scales", (1, 5), K=3, degree=2, scales=True,
           chunk_size=16, thorough=True),
    _omega("strided", "views of one projection, expanded gates", (2, 9), theta=True,
           chunk_size=4, layout=fused),
    _omega("packed", "three sequences, the middle one empty", (1, 11), theta=True,
           per_sequence=True, lengths=(5, 0, 6), chunk_size=4, thorough=True),
    _omega("mid_chunk", "starts inside a chunk, window partly before the start", (3, 8), W=5,
           theta=True, positions=(1, 6, 7), chunk_size=4, thorough=True),
    _omega("packed_states", "packed sequences going on from states, one of them empty", (1, 9), W=3,
           lengths=(4, 0, 5), positions=(2, 3, 5), chunk_size=4, degree=1, scales=True),
    _omega("lanes", "wider than vector lanes, window = chunk", (1, 37), H=1, K=17, V=19, W=16,
           theta=True, chunk_size=16),
    _omega("overhang", "three chunks whose overhang is no multiple of a tile", (1, 40), H=1, W=6,
           theta=True, degree=2, scales=True, chunk_size=16),
    _omega("slices", "enough outputs for blocks to share them, residual", (1, 9), H=1, K=64, V=64,
           W=3, theta=True, positions=(6,), residual=True, chunk_size=4),
    _omega("team", "a memory too large for a chip: blocks share its chunks, residual", (1, 40), H=1,
           K=24, V=24, F=300, W=9, memory="gated_mlp", theta=True, positions=(5,), residual=True,
           chunk_size=24),
    _omega("degree3", "features of degree 3, default scales, across chunks", (1, 7), K=3, degree=3,
           theta=True, chunk_size=3),
    _omega("degree4", "features of degree 4, dot objective", (1, 5), H=1, K=2, degree=4,
           scales=True, objective="dot", chunk_size=2),
    _omega("half_gates", "gates and weights in the dtype of q", (1, 7), theta=True, chunk_size=4,
           gates_in_dtype=True),
    _omega("muon", "Newton-Schulz at every token", (2, 6), K=5, theta=True, positions=(2, 5),
           chunk_size=4, ns_steps=5, thorough=True),
    _omega("muon_tall", "Newton-Schulz transposed inside, every third token", (1, 10), K=3, V=5,
           W=4, theta=True, positions=(4,), chunk_size=4, ns_steps=3, ns_every=3, ns_scale="rms",
           ns_schedule="polar_express"),
    _omega("muon_chunk", "one write a chunk, packed, features, custom table", (1, 13), K=2, V=3,
           W=6, lengths=(8, 0, 5), degree=2, scales=True, chunk_size=4, ns_every=4, table=2,
           ns_scale="shape"),
    _omega("mlp", "two matrices, T no multiple of C", (2, 11), memory="mlp", W=4, theta=True,
           chunk_size=4, thorough=True),
    _omega("gated", "three matrices per sequence, SiLU, residual", (2, 9), K=3, V=3, F=5,
           memory="gated_mlp", theta=True, per_sequence=True, activation="silu", residual=True,
           chunk_size=4, thorough=True),
    _omega("mlp_dot", "W > C, no momentum, no decay, residual, F < V", (1, 10), K=5, V=5, W=7, F=3,
           memory="mlp", alpha=False, objective="dot", residual=True, chunk_size=3),
    _omega("gated_dot", "the exact recurrence, dot objective", (1, 7), F=4,
           memory="gated_mlp", objective="dot", chunk_size=1),
    _omega("mlp_features", "features with scales feed layer 1, the raw key the residual", (1, 9),
           K=3, V=3, memory="mlp", degree=2, scales=True, theta=True, residual=True,
           activation="silu", chunk_size=4),
    _omega("gated_features", "features with scales in W1 and W3, packed, one sequence empty",
           (1, 10), K=2, F=5, memory="gated_mlp", degree=2, scales=True, lengths=(6, 0, 4),
           per_sequence=True, chunk_size=4),
    _omega("mlp_mid_chunk", "starts inside a chunk, window partly before the start, identity",
           (3, 7), W=5, memory="mlp", theta=True, positions=(1, 6, 7), activation="identity",
           chunk_size=4),
    _omega("gated_states", "packed sequences going on from states, one of them empty", (1, 9), F=7,
           memory="gated_mlp", lengths=(4, 0, 5), positions=(2, 3, 5), theta=True, chunk_size=4),
    _omega("mlp_lanes", "every side wider than vector lanes and odd", (1, 35), H=1, K=17, V=19,
           F=37, W=16, memory="mlp", theta=True, chunk_size=16),
    _omega("gated_lanes", "F = 4K, wider than vector lanes", (1, 21), H=1, K=17, V=17, F=68, W=5,
           memory="gated_mlp", theta=True, residual=True, chunk_size=16),
    _omega("mlp_one_token", "T = 1, no final state, whose tails have no gradient", (2, 1),
           memory="mlp", alpha=False, output_final_state=False),
    _omega("mlp_half", "gates and weights in the dtype of q", (1, 7), memory="mlp", theta=True,
           chunk_size=4, gates_in_dtype=True),
    _omega("mlp_muon", "Newton-Schulz of both matrices at every token", (2, 6), memory="mlp",
           theta=True, positions=(2, 5), chunk_size=4, ns_steps=5, thorough=True),
    _omega("gated_muon", "Newton-Schulz of three matrices, every third token, tall and wide",
           (1, 8), K=3, V=3, F=8, W=4, memory="gated_mlp", theta=True, positions=(4,),
           residual=True, chunk_size=4, ns_steps=3, ns_every=3, ns_scale="rms",
           ns_schedule="polar_express", thorough=True),
    _omega("gated_muon_chunk", "one write a chunk, packed, features, custom table, dot", (1, 12),
           K=2, F=5, W=5, memory="gated_mlp", theta=True, lengths=(7, 0, 5), positions=(3, 1, 4),
           degree=2, scales=True, objective="dot", chunk_size=4, ns_every=4, table=2,
           ns_scale="shape"),
    _omega("no_tokens", "T = 0: the state comes back", (2, 0), theta=True, positions=(3, 5)),
    _omega("empty", "no sequences", (0, 3), theta=True),
    _update("plain", "W = 1: empty tails", (0, 3), W=1, chunk_size=4, thorough=True),
    _update("momentum", "before, at and after a chunk's end", (2, 3, 4), W=4, theta=True,
            chunk_size=4, thorough=True),
    _update("slots", "three rows in five slots, out of order", (1, 2, 3, 4, 9), theta=True,
            indices=(4, 0, 2), chunk_size=4, thorough=True),
    _update("features", "polynomial features with scales, dot objective", (2, 6), K=3, degree=2,
            scales=True, objective="dot", chunk_size=4),
    _update("muon", "writes at every second position", (2, 3), theta=True, chunk_size=4, ns_steps=5,
            ns_every=2),
    _update("lanes", "wider than vector lanes", (7, 8), K=19, V=17, W=6, theta=True, chunk_size=8),
    _update("mlp", "two matrices, before, at and after a chunk's end", (2, 3, 4), W=4, theta=True,
            memory="mlp", chunk_size=4, thorough=True),
    _update("gated", "three matrices with a residual, rows out of order", (1, 3, 4, 9), K=3, V=3,
            memory="gated_mlp", indices=(3, 0, 2), residual=True, activation="silu", chunk_size=4),
    _update("mlp_features", "features with scales, dot objective, F < V", (2, 7), K=3, V=5, F=4,
            memory="mlp", degree=2, scales=True, objective="dot", chunk_size=4),
    _update("gated_muon", "Newton-Schulz of three matrices at one of two positions", (2, 3),
            theta=True, memory="gated_mlp", chunk_size=4, ns_steps=5, ns_every=2),
    _update("mlp_lanes", "every side wider than vector lanes and odd", (7, 8), K=17, V=19, F=37,
            W=6, theta=True, memory="mlp", activation="identity", chunk_size=8),
    _update("empty", "no rows", (), theta=True),
    *EXP_OMEGA_CASES,
]
# fmt: on


def cases(op: str | None = None, **flags: bool) -> list[Case]:
    """The cases of one operator, or of all; ``thorough=True`` and the like select by attribute."""
    return [
        case
        for case in CASES
        if op in (None, case.op) and all(getattr(case, key) == flag for key, flag in flags.items())
    ]
