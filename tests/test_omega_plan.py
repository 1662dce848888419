"""How the Omega rule's CUDA launchers plan, against bench/omega_buffers.py and the docs' table."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from atlas_ext.__main__ import (
    CAPABILITIES,
    EXP_OMEGA,
    EXP_OMEGA_OPERATORS,
    OMEGA,
    OMEGA_OPERATORS,
    OmegaSizes,
    plan_source,
)
from bench.omega_work import MEMORIES, OmegaRule

BLOCK_SHARED = {75: 64, 80: 163, 86: 99, 90: 227, 100: 227}  # KiB
MLP_64, MLP_128 = (OmegaSizes(64, 64, F=width, matrices=2) for width in (64, 128))
PRESET, GATED_PRESET = (
    OmegaSizes(16, 16, F=64, degree=2, matrices=count, ns_steps=5, ns_every=16) for count in (2, 3)
)
DUAL_PRESET, GATED_DUAL_PRESET = (
    sizes._replace(ns_steps=0, ns_every=1) for sizes in (PRESET, GATED_PRESET)
)
PLANNED = (
    *OMEGA,
    OmegaSizes(64, 64, momentum=0),
    OmegaSizes(64, 64, F=64, matrices=3),
    GATED_DUAL_PRESET,
    OmegaSizes(16, 16, F=64, matrices=2),
    OmegaSizes(16, 16, F=64, matrices=2, ns_steps=5),
    OmegaSizes(8, 8, F=16, degree=2, matrices=2, ns_steps=5),  # its features are wider than X
    OmegaSizes(16, 16, F=64, degree=2, matrices=2, momentum=0, ns_steps=5),
    OmegaSizes(8, 24, W=1, C=1),
    OmegaSizes(5, 3, F=7, W=40, C=16, degree=3, matrices=3),
    OmegaSizes(128, 128),
    OmegaSizes(128, 48),
    OmegaSizes(256, 256),
)


@pytest.fixture
def plan() -> Callable[..., str]:
    """The launchers' own answer."""
    source = plan_source("cuda_runtime" in torch.ops.atlas_ext.build_info())
    if source is None:
        pytest.skip("neither CUDA nor emulated kernels in this build")
    return source[1]


def rule_of(sizes: OmegaSizes) -> OmegaRule:
    return OmegaRule(
        K=sizes.K,
        V=sizes.V,
        F=sizes.F,
        W=sizes.W,
        C=sizes.C,
        degree=sizes.degree,
        memory=MEMORIES[sizes.matrices - 1],
        momentum=sizes.momentum == 1,
        ns_steps=sizes.ns_steps,
        ns_every=sizes.ns_every,
    )


@pytest.mark.parametrize("op", ["omega_rule", "omega_rule_backward"])
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("sizes", PLANNED, ids=lambda sizes: sizes.title)
def test_placement_is_the_launchers(
    plan: Callable[..., str], sizes: OmegaSizes, capability: int, op: str
) -> None:
    rule, backward = rule_of(sizes), op.endswith("backward")
    limit = BLOCK_SHARED[capability] << 10
    slices = rule.slices(limit, backward)
    part = rule.slice_of(slices).resident(limit, backward, items=2, multiprocessors=1)
    mine = part.placement(limit, backward)
    text = plan(op, "bfloat16", sizes, False, capability)
    form = "Newton-Schulz" if sizes.ns_steps else "dual"
    words = "tf32 tensor cores" if capability >= 80 else "float multiply-adds"
    words = f"split {words}" if sizes.ns_steps and capability >= 80 else words
    state = "weights and momentum" if sizes.momentum else "weights"
    state = f"gradients of {state}" if backward else state
    if sizes.ns_steps:
        state = f"squares and {'the gradient of X' if backward else 'X'}"
    elsewhere = "not all on chip" if sizes.ns_steps else "in device memory"
    where = "on chip" if mine.on_chip else elsewhere
    where += f", {slices} slices of V" if slices > 1 else ""
    where += f", {part.residents} heads a multiprocessor" if part.residents > 1 else ""
    assert text.startswith(f"{form} form: {words}, {state} {where}, {part.threads} threads, ")
    found = [float(part.split()[0]) for part in text.split(", ") if "KiB" in part]
    wanted = [mine.shared_bytes / 1024, mine.scratch_bytes / 1024]
    assert found == pytest.approx(wanted[: 2 if mine.scratch_bytes else 1], abs=0.06)


# The state, 4 F (D + V) bytes of an MLP and 4 F (2 D + V) of a gated one, twice, is on chip where
# it fits beside 2 to 5 KiB of decays and, with phi, the features of a tile.
FITS = {
    MLP_64: {75: False, 80: True, 86: True, 90: True, 100: True},  # 2 x 32 KiB
    MLP_128: {75: False, 80: True, 86: False, 90: True, 100: True},  # 2 x 64 KiB
    DUAL_PRESET: {75: False, 80: True, 86: False, 90: True, 100: True},  # 2 x 42.25 KiB
    GATED_DUAL_PRESET: {75: False, 80: False, 86: False, 90: True, 100: True},  # 2 x 80.5 KiB
    OmegaSizes(64, 64, F=256, matrices=2): dict.fromkeys(BLOCK_SHARED, False),  # 2 x 128 KiB
    OmegaSizes(64, 64): dict.fromkeys(BLOCK_SHARED, True),  # 2 x 16 KiB
}


@pytest.mark.parametrize("sizes", FITS, ids=lambda sizes: sizes.title)
def test_state_is_on_chip_where_it_fits(plan: Callable[..., str], sizes: OmegaSizes) -> None:
    rule = rule_of(sizes)
    layers = 2 if sizes.matrices == 3 else 1
    inputs = rule.features * layers
    assert rule.size == (sizes.F * (inputs + sizes.V) if sizes.F else rule.features * sizes.V)
    for capability, fits in FITS[sizes].items():
        text = plan("omega_rule", "float32", sizes, False, capability)
        assert ("weights and momentum on chip" in text) == fits, capability
        if 2 * 4 * rule.size > BLOCK_SHARED[capability] << 10:
            assert not fits


# Two heads of a deep memory share a multiprocessor where their states fit: 4 x 42.25 KiB of the
# preset, 4 x 8 KiB of the same without phi; with Newton-Schulz its matrices, 2 x 150 KiB and
# 2 x 15 KiB.
@pytest.mark.parametrize("op", ["omega_rule", "omega_rule_backward"])
def test_two_heads_share_a_multiprocessor(plan: Callable[..., str], op: str) -> None:
    for sizes, shared in (
        (DUAL_PRESET, {75: False, 80: False, 86: False, 90: True, 100: True}),
        (OmegaSizes(16, 16, F=64, matrices=2), dict.fromkeys(BLOCK_SHARED, True)),
        (GATED_DUAL_PRESET, dict.fromkeys(BLOCK_SHARED, False)),
        (MLP_64, dict.fromkeys(BLOCK_SHARED, False)),  # outputs wider than a tile
        (PRESET, dict.fromkeys(BLOCK_SHARED, False)),
        (OmegaSizes(16, 16, F=64, matrices=2, ns_steps=5), dict.fromkeys(BLOCK_SHARED, True)),
        (OmegaSizes(16, 16), dict.fromkeys(BLOCK_SHARED, False)),
    ):
        for capability, two in shared.items():
            text = plan(op, "bfloat16", sizes, False, capability)
            assert ("on chip, 2 heads a multiprocessor, 128 threads" in text) == two, text
            assert ("heads" in text) == two


# Squares, X and its successor: 4 x 17 + 2 x 41 KiB of either preset.
@pytest.mark.parametrize("sizes", [PRESET, GATED_PRESET], ids=lambda sizes: sizes.title)
def test_newton_schulz_stays_on_chip(plan: Callable[..., str], sizes: OmegaSizes) -> None:
    for capability, fits in {75: False, 80: True, 86: False, 90: True, 100: True}.items():
        text = plan("omega_rule", "bfloat16", sizes, False, capability)
        assert ("squares and X on chip" in text) == fits, capability
        text = plan("omega_rule_backward", "bfloat16", sizes, False, capability)
        assert ("squares and the gradient of X on chip" in text) == fits, capability


def test_plan_refuses_sizes(plan: Callable[..., str]) -> None:
    names = "K, V, F, W, C, degree, matrices, momentum, ns_steps, ns_every"
    with pytest.raises(RuntimeError, match=rf"cuda_plan: sizes: wanted {names}, got 4, 4$"):
        plan("omega_rule", "float32", (4, 4), False, 80)
    wrong: list[dict[str, int]] = [
        *({name: 0} for name in ("K", "V", "W", "C", "matrices", "ns_every")),
        {"F": 3},
        {"matrices": 2},
        {"degree": 5},
        {"momentum": 2},
        {"ns_steps": -1},
        {"K": 65535},
        {"matrices": 4, "F": 3},
    ]
    for change in wrong:
        with pytest.raises(RuntimeError, match=rf"cuda_plan: sizes: wanted {names} with K, "):
            plan("omega_rule", "float32", OmegaSizes(64, 64)._replace(**change), False, 80)
    with pytest.raises(RuntimeError, match=r"sizes: wanted K < 65535, and matrices and chunks"):
        plan("omega_rule", "float32", OmegaSizes(65000, 4, degree=4), False, 80)
    with pytest.raises(RuntimeError, match=r"sizes: wanted degree 0 and ns_steps 0 .*, got 2, 0$"):
        plan("exp_omega_rule", "float32", OmegaSizes(8, 8, degree=2), False, 80)
    with pytest.raises(RuntimeError, match=r"op: wanted an operator with CUDA kernels, got omega"):
        plan("omega", "float32", OmegaSizes(64, 64), False, 80)


def test_two_heads_share_where_rounds_are_halved() -> None:
    rule, shared = OmegaRule(16, 16, 64, memory="mlp"), BLOCK_SHARED[90] << 10
    rounds = {4: 1, 5: 2, 8: 2, 9: 3, 12: 3, 13: 4, 16: 4, 17: 5}
    for items, count in rounds.items():
        two = rule.resident(shared, False, items, multiprocessors=4).residents == 2
        assert two == (count % 2 == 0)


def test_operators_are_listed(plan: Callable[..., str]) -> None:
    for op in OMEGA_OPERATORS:
        wanted = "state in place" if op == "omega_rule_update" else "form: "
        assert wanted in plan(op, "float32", GATED_PRESET, False, 80)
    for op in EXP_OMEGA_OPERATORS:
        wanted = "walk over the past" if op == "exp_omega_rule_update" else "rows of all tokens"
        for sizes in EXP_OMEGA:
            assert wanted in plan(op, "float32", sizes, False, 80)
