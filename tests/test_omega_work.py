"""The counts of bench/omega_work.py: by hand, and against what kernels do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import atlas_ext
from atlas_ext import testing
from bench import roofline
from bench.cuda_work import DEVICES
from bench.omega_work import MEMORIES, OmegaRule, Product, omega_rule, omega_rule_update


def test_products_by_hand() -> None:
    assert Product(17, 33, 9).useful == 2 * 17 * 33 * 9
    assert Product(17, 33, 9).executed(4, True) == 2 * 32 * 64 * 16
    assert Product(17, 33, 9).executed(4, True, split=True) == 3 * 2 * 32 * 64 * 16
    assert Product(17, 33, 9).executed(4, False) == 2 * 32 * 64 * 9
    assert Product(79, 64, 8).executed(8, True) == 2 * 96 * 64 * 8  # two rounds of 10, one of 6
    assert Product(64, 64, 8).executed(8, True) == 2 * 64 * 64 * 8  # one of 8, one of 4


def test_what_two_heads_gain() -> None:
    """docs/cuda.md, "Two heads on a multiprocessor": thousands of instructions a chunk, and KiB of
    a head in device memory."""
    assert Product(79, 64, 153).chain(8) == 20 * 99 + 600
    assert Product(79, 16, 64).chain(4) == 8 * 99 + 600
    for memory, degree, K, wanted, kibibytes in (
        ("mlp", 0, 16, (27.5, 19.1, 76.6, 58.7), [0, 76, 244, 353]),
        ("gated_mlp", 0, 16, (37.2, 25.9, 108, 82.6), [21, 119, 371, 484]),
        ("mlp", 0, 32, (29.3, 20.7, 82.4, 63.8), [0, 106, 305, 414]),
        ("mlp", 2, 16, (45.2, 44.0, 132, 136), [64, 156, 383, 474]),
    ):
        one = OmegaRule(K, K, 64, degree=degree, memory=memory)
        found, lying = [], []
        for backward in (False, True):
            two = one.resident(DEVICES["h100"].block_shared, backward, items=2, multiprocessors=1)
            for rule, heads in ((one, 2), (two, 1)):
                made = rule.backward_products(2048) if backward else rule.products(2048)
                chain = sum(product.chain(rule.threads // 32) for product in made)
                found.append(heads * chain / 32 / 1000)
                place = rule.placement(DEVICES["h100"].block_shared, backward)
                lying.append(round(place.scratch_bytes / 1024))
        assert found == pytest.approx(wanted, abs=0.5 if max(wanted) > 100 else 0.05)
        assert lying == kibibytes


# docs/math/omega_rule.md, section 3, for a chunk of n tokens and R rows.
def dual_formula(rule: OmegaRule, n: int, rows: int) -> int:
    states, D, V, F, K = 2 if rule.momentum else 1, rule.features, rule.V, rule.F, rule.K
    dense = rows + states * (n + rows)
    if not rule.deep:
        return dense * V * D + n * rows * (K + V)
    count = dense * F * (D + V) + rows * F * V + n * rows * (K + F) + n * rows * (F + V)
    if rule.memory == "gated_mlp":
        count += dense * F * D + n * rows * F
    return count


@pytest.mark.parametrize("momentum", [True, False])
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("degree", [0, 2])
def test_dual_form_is_the_formula(degree: int, memory: str, momentum: bool) -> None:
    hidden = 0 if memory == "linear" else 24
    rule = OmegaRule(10, 12, hidden, W=6, C=16, degree=degree, memory=memory, momentum=momentum)
    useful = sum(product.useful for product in rule.products(40, final_state=True))
    chunks = [(16, 16), (16, 21), (8, 13)]
    assert useful == 2 * sum(dual_formula(rule, n, rows) for n, rows in chunks)
    ratio = sum(product.useful for product in rule.backward_products(40)) / useful
    assert 2 < ratio < 4  # "about three forwards", and what is computed anew


def test_backward_of_a_linear_memory_by_hand() -> None:
    """(20) to (31) and (38) of one chunk: e, hM, hS, gx twice, (31) twice; five of the queries."""
    rule = OmegaRule(10, 12, W=6, C=16)
    n = rows = 16
    dense = (1 + 2 + 2 + 2) * rows + (2 + 2 + 2) * n
    attention = n * rows * (3 * 10 + 2 * 12)  # P, gu, gx; B, ge
    made = sum(product.useful for product in rule.backward_products(16))
    assert made == 2 * (dense * 10 * 12 + attention)


def test_newton_schulz_by_hand() -> None:
    """Two writes in a chunk of four, at positions 1 and 3; a segment of two sees three rows."""
    rule = OmegaRule(6, 5, W=2, C=4, ns_steps=3, ns_every=2, momentum=False)
    made = sum(product.useful for product in rule.products(4))
    errors, advance, read = 4 * 30, (2 + 3) * 30, 2 * (30 + 30)
    schulz = 2 * 3 * (5 * 5 * 6 + 5**3 + 6 * 5 * 5)
    assert made == 2 * (errors + advance + read + schulz)


COUNTED: dict[str, tuple[OmegaRule, int]] = {
    "linear": (OmegaRule(20, 24, W=6, C=16), 40),
    "wide": (OmegaRule(12, 64, W=6, C=16), 40),  # slices of 32
    "no momentum, dot": (OmegaRule(20, 24, W=6, C=16, momentum=False, l2=False), 40),
    "degree 2": (OmegaRule(12, 12, W=6, C=16, degree=2), 40),
    "mlp": (OmegaRule(20, 20, 40, W=6, C=16, memory="mlp"), 40),
    "gated, dot": (OmegaRule(20, 24, 40, W=20, C=16, memory="gated_mlp", l2=False), 40),
    "deep mlp": (OmegaRule(20, 20, 40, W=6, C=20, memory="mlp"), 50),  # 6 KiB of shared memory
    "deep gated, dot": (OmegaRule(20, 24, 40, W=20, C=16, memory="gated_mlp", l2=False), 40),
    "deep features": (OmegaRule(5, 36, 40, W=6, C=33, degree=2, memory="mlp"), 70),
    "two heads": (OmegaRule(20, 20, 72, W=6, C=16, memory="mlp"), 40),
    "two heads, features, dot": (
        OmegaRule(8, 8, 72, W=6, C=64, degree=2, memory="gated_mlp", l2=False, momentum=False),
        70,
    ),
    "two heads, Newton-Schulz": (
        OmegaRule(8, 8, 72, W=6, C=16, memory="mlp", ns_steps=2, ns_every=4),
        22,
    ),
    "Newton-Schulz": (OmegaRule(20, 24, W=6, C=8, ns_steps=2), 11),
    "gated, degree 2, every fourth": (
        OmegaRule(*(6, 6, 40), W=6, C=16, degree=2, memory="gated_mlp", ns_steps=2, ns_every=4),
        22,
    ),
}


@pytest.mark.parametrize("multiprocessors", [2, 4, 108])
@pytest.mark.parametrize("final_state", [True, False])
@pytest.mark.parametrize("name", COUNTED)
def test_executed_operations_are_those_of_the_kernel(
    name: str, final_state: bool, multiprocessors: int
) -> None:
    """Tensor-core instructions of the emulated kernels, two sequences and two heads; with many
    multiprocessors blocks share a linear memory's outputs, and its chunks in the backward, or every
    chunk of a deep memory, with few of them two heads share one."""
    try:
        testing.has_emulated_kernel("omega_rule")
    except ImportError as error:
        pytest.skip(str(error))
    rule, tokens = COUNTED[name]
    shared = (6 if name.startswith("deep") else 163) << 10
    with_backward = not final_state and testing.has_emulated_kernel("omega_rule_backward")
    generator = torch.Generator().manual_seed(0)
    sizes: dict[str, Any] = {"H": 2, "K": rule.K, "V": rule.V, "W": rule.W}
    inputs = testing.omega_tensors(generator, (2, tokens), theta=rule.momentum, **sizes)
    weights = testing.memory_weights(
        generator, 2, V=rule.V, D=rule.features, F=rule.F, memory=rule.memory
    )
    narrow = testing.map_tensors(lambda _, x: x.float(), {**inputs, "weights": weights})
    narrow |= {key: narrow[key].bfloat16() for key in "qkv"}
    names = list(testing.named_tensors(narrow)) if with_backward else []
    with testing.emulated() as module:
        module.set_device(80, multiprocessors, shared >> 10)
        counts = [module.counters()["mma"]]
        out, _ = atlas_ext.omega_rule(
            **testing.require_grad(narrow, names),
            chunk_size=rule.C,
            degree=rule.degree or None,
            objective="l2" if rule.l2 else "dot",
            ns_steps=rule.ns_steps,
            ns_every=rule.ns_every,
            output_final_state=final_state,
        )
        counts.append(module.counters()["mma"])
        if with_backward:
            out.float().sum().backward()
            counts.append(module.counters()["mma"])
    forward, backward = (
        rule.slices(shared, pass_, items=4, multiprocessors=multiprocessors)
        for pass_ in (False, True)
    )
    assert (forward > 1) == (name == "wide" and multiprocessors > 4)
    one, other = (
        rule.slice_of(slices).resident(shared, pass_, 4, multiprocessors)
        for slices, pass_ in ((forward, False), (backward, True))
    )
    for part in (one, other):
        shared_by_two = name == "gated, dot" or name.startswith("two heads")
        assert (part.residents > 1) == (shared_by_two and multiprocessors == 2)
    teams = [
        one.team(shared, backward, 4, multiprocessors)
        for one, backward in ((one, False), (other, True))
    ]
    assert (teams[0] is not None) == (name.startswith("deep") and multiprocessors > 4)
    made = [
        list(one.products(tokens, final_state, teams[0])),
        list(other.backward_products(tokens, teams[1])),
    ]
    if rule.parts(backward, 4, len(list(rule.chunks(tokens))), multiprocessors) > 1:
        made[1] += other.repeated_products(tokens)
    counted = zip(counts, counts[1:], (one, other), made, (forward, backward), strict=False)
    for before, after, part, products, slices in counted:
        once = sum(p.executed(part.threads // 32, True, rule.muon) for p in products)
        assert (after - before) * 2 * 16 * 8 * 8 == 4 * slices * once


def test_work_of_a_call() -> None:
    rule = OmegaRule(64, 64)
    work = omega_rule(rule, 2, 4, 128, "bfloat16", DEVICES["h100"])
    token = 2 * 4 * 64 + 4 * (16 + 3)
    assert work.moved == 8 * 128 * token + 4 * 4 * 64 * 64
    assert (work.arithmetic, work.blocks, work.scratch) == ("tf32", 8 * 2, 0)  # slices of 32
    back = omega_rule(rule, 2, 4, 128, "float32", DEVICES["a100"], backward=True)
    # Two slices, and two blocks for the chunks of each: queries, gates and values twice, keys four
    # times.
    token, summands = 4 * (4 * 64 + 16 + 3), 4 * (2 * (64 + 16 + 3) + 4 * 64 + 2 * 64)
    assert (back.arithmetic, back.blocks) == ("float", 8 * 2 * 2)
    moved = 8 * 128 * (2 * token - 4 * 64 + 2 * summands) + 2 * 4 * 4 * 4096
    assert back.moved == moved + 3 * 8 * 2 * 2 * 4 * 4096
    wide = list(rule.backward_products(128))
    assert back.useful == 8 * sum(product.useful for product in wide)


def test_bytes_of_decoding() -> None:
    """Five states a token, as bench/roofline.py has it, and what that leaves out."""
    for rule in (OmegaRule(64, 64), OmegaRule(64, 64, 256, memory="mlp")):
        shapes = tuple((out, width) for width, out in rule.matrices)
        work = omega_rule_update(rule, 64, 4, "float32")
        five = roofline.omega_rule_update_bytes(64, 4, shapes)
        rest = 64 * 4 * 4 * (rule.size / 64 + 2 * 15 * 128 + 4 * 64 + 19)
        assert work.moved == five + rest


@pytest.mark.parametrize("backward", [False, True])
def test_roofline_prints(backward: bool) -> None:
    call = ["omega_rule", "2048", "64", "64", "--hidden", "256", "--memory", "mlp"]
    arguments = [*call, "--heads", "8", "--device", "a100", "--dtype", "bfloat16"]
    asked = roofline.parse([*arguments, *(["--backward"] if backward else [])])
    text = roofline.lines(roofline.work_of(asked), DEVICES["a100"])
    assert text[0].startswith("kernel      dual form, tf32 arithmetic on A100")
    # Of each head 4 blocks for the tokens and 5 for the memory; backward: 5 for the window's rows
    # and 10 for the memory.
    idle = [line for line in text if "of 108 multiprocessors work" in line]
    assert [line[:3] for line in idle] == ([] if backward else ["72 "])
    asked = roofline.parse(["omega_rule_update", "64", "64", "64", "--heads", "4"])
    assert any(
        "set by memory" in line for line in roofline.lines(roofline.work_of(asked), DEVICES["h100"])
    )
