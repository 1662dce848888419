"""The counts of bench/cuda_work.py and bench/banks.py: by hand, and against what kernels do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import atlas_ext
from atlas_ext import testing
from atlas_ext.__main__ import CAPABILITIES, MATRICES, PRECISIONS, plan_source
from bench import banks, roofline
from bench.cuda_work import (
    DEVICES,
    MUON_A,
    NewtonSchulz,
    monomials,
    newton_schulz,
    poly_features,
    stretches,
)

BLOCK_SHARED = {75: 64, 80: 163, 86: 99, 90: 227, 100: 227}  # KiB


@pytest.fixture
def plan():
    """The launchers' own answer."""
    source = plan_source("cuda_runtime" in torch.ops.atlas_ext.build_info())
    if source is None:
        pytest.skip("neither CUDA nor emulated kernels in this build")
    return source[1]


def test_stretches() -> None:
    assert list(stretches((MUON_A,) * 5, elongated=False)) == [1] * 5
    assert list(stretches((MUON_A,) * 5, elongated=True)) == [3, 2]  # a² = 11.9: 12, 141, 1670
    assert list(stretches((1.0, 17.0, 1.0), elongated=True)) == [2, 1]  # 17² > 256


def test_newton_schulz_by_hand() -> None:
    """[20, 10] is held as [32, 16]; one stretch of two steps, or one step alone."""
    square, tall = 2 * 16**3, 2 * 16 * 16 * 32
    plan = NewtonSchulz(20, 10, "float32", 80)
    assert (plan.size, plan.rows, plan.elongated, plan.matrices) == (16, 32, True, 4)
    assert plan.executed((MUON_A,)) == tall + square + tall
    # gram; Z, A Z twice; Z, Q Z; X Q
    assert plan.executed((MUON_A,) * 2) == tall + 5 * square + tall
    assert plan.shared == 4 * 4 * (32 * 16 + 3 * 16 * 16)
    back = NewtonSchulz(20, 10, "bfloat16", 80, backward=True)
    assert back.arithmetic == "tf32"
    # One step recomputed; per step A, XᵀG, P A, A², G Z, X R.
    assert back.executed((MUON_A,) * 2) == 2 * tall + square + 2 * (4 * tall + 2 * square)
    assert back.tape(2) == 2 * 2 * 32 * 16 * 4


def test_newton_schulz_floor() -> None:
    work = newton_schulz(512, 64, 64, "bfloat16", DEVICES["h100"])
    assert work.executed == work.useful == 512 * 5 * 6 * 64**3
    assert work.moved == 512 * 2 * 64 * 64 * 2
    assert work.floor(DEVICES["h100"]) == (work.executed / 989e12, "arithmetic")
    assert work.intensity == 480
    large = newton_schulz(1, 512, 512, "float16", DEVICES["a100"])
    assert large.kernel == "matrix products" and large.executed == large.useful


def test_poly_features_by_hand() -> None:
    assert [monomials(3, degree) for degree in range(3)] == [1, 3, 6]
    work = poly_features(5, 3, 2, "bfloat16", DEVICES["a100"])
    assert work.moved == 5 * (3 + 10) * 2
    assert (work.executed, work.useful) == (5 * 10 * 2, 5 * (3 + 2 * 6))
    assert work.floor(DEVICES["a100"]) == (work.moved / 2.04e12, "memory")
    back = poly_features(5, 3, 2, "bfloat16", DEVICES["a100"], backward=True)
    assert back.moved == 5 * (2 * 3 + 10) * 2
    assert back.executed == 5 * (9 * 9 + 3) and back.scratch == 0
    assert back.shared == 16 * (2 * 3 + 3) * 4
    big = poly_features(5, 64, 4, "float32", DEVICES["a100"], backward=True)
    assert big.scratch == 5 * 2 * 4 * (64 + monomials(64, 2) + monomials(64, 3))


def test_blocks_of_a_multiprocessor() -> None:
    device = DEVICES["a100"]
    assert device.blocks(18 << 10, 128) == 8  # 164 KiB / 19
    assert device.blocks(0, 128) == 16 and device.blocks(0, 32) == 32
    assert device.blocks(0, 128, registers=96) == 5


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_plans_are_the_launchers(plan, capability) -> None:
    arithmetics = {"float": "float multiply-adds", "tf32": "tf32 tensor cores"}
    shapes = (*MATRICES, (7, 3), (17, 33), (32, 64), (96, 40), (129, 128), (70, 500), (1, 1))
    for m, n in shapes:
        for dtype, tf32 in PRECISIONS.values():
            for backward in (False, True):
                mine = NewtonSchulz(m, n, dtype, capability, tf32, backward)
                op = "newton_schulz_backward" if backward else "newton_schulz"
                text = plan(op, dtype, (m, n), tf32, capability)
                if not mine.is_fused(BLOCK_SHARED[capability] << 10):
                    assert text == "matrix products", (m, n, dtype)
                    continue
                half = "bf16" if dtype == "bfloat16" else "f16"
                words = arithmetics.get(mine.arithmetic, f"{half} tensor cores")
                assert text.startswith(f"fused {mine.size}: {words}, {mine.matrices} a block, ")
                kibibytes = text.removesuffix(" KiB").rsplit(" ", 1)[1]
                assert float(kibibytes) == pytest.approx(mine.shared / 1024, abs=0.06)


def test_plan_refuses_what_it_does_not_know(plan) -> None:
    with pytest.raises(RuntimeError, match=r"cuda_plan: capability: wanted 75, .*, got 70"):
        plan("newton_schulz", "float32", (4, 4), False, 70)
    with pytest.raises(RuntimeError, match=r"cuda_plan: op: wanted .*, got exp_rule"):
        plan("exp_rule", "float32", (4, 4), False, 80)


@pytest.mark.parametrize("shape", [(1, 20, 10), (5, 16, 16), (2, 40, 70), (1, 130, 50)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_executed_operations_are_those_of_the_kernel(shape, dtype) -> None:
    """Tensor core instructions that the emulated kernels ran, idle slots of a block included."""
    x = testing.normal(torch.Generator().manual_seed(0), *shape).to(dtype).requires_grad_()
    name = str(dtype).removeprefix("torch.")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with testing.emulated() as module:
            counts = [module.counters()["mma"]]
            output = atlas_ext.newton_schulz(x)
            counts.append(module.counters()["mma"])
            output.sum().backward()
            counts.append(module.counters()["mma"])
    except ImportError as error:
        pytest.skip(str(error))
    finally:
        torch.set_float32_matmul_precision(before)
    for backward in (False, True):
        mine = NewtonSchulz(*shape[1:], name, 80, True, backward)
        slots = -(-shape[0] // mine.matrices) * mine.matrices
        instruction = 2 * 16 * 8 * (16 if mine.arithmetic == "half" else 8)
        made = (counts[1 + backward] - counts[backward]) * instruction
        assert made == slots * mine.executed((MUON_A,) * 5), backward


@pytest.mark.parametrize(
    ("rows", "dim", "degree", "wanted"),
    [(200, 19, 2, 9), (10, 19, 2, 3), (200, 5, 4, 7), (100, 24, 4, 3), (30, 36, 4, 4)],
)
def test_blocks_of_the_backward(rows, dim, degree, wanted) -> None:
    """By registers, rows, registers, shared memory, and where sums are in device memory."""
    one = replace(DEVICES["a100"], multiprocessors=1)
    assert poly_features(rows, dim, degree, "float32", one, backward=True).blocks == wanted
    x = testing.normal(torch.Generator().manual_seed(0), rows, dim).float().requires_grad_()
    try:
        with testing.emulated(capability=80) as module:
            module.set_device(80, multiprocessors=1)
            output = atlas_ext.poly_features(x, degree)
            before = module.counters()["blocks"]
            output.sum().backward()
            assert module.counters()["blocks"] - before == wanted
    except ImportError as error:
        pytest.skip(str(error))


def test_no_bank_conflicts() -> None:
    for access, best in banks.ACCESSES.items():
        for size in banks.SIZES:
            assert access(banks.layouts(access)[0], size) == best, (access.__name__, size)


@pytest.mark.parametrize("width", banks.SIZES)
def test_float_layout_keeps_pieces_and_matrices(width) -> None:
    """Sixteen bytes stay together for cp.async, and no two elements meet."""
    for row in range(16):
        for column in range(0, width, 4):
            places = [banks.float_at(row, column + i, width) for i in range(4)]
            assert places == list(range(places[0], places[0] + 4)) and places[0] % 4 == 0
    whole = {banks.float_at(row, column, width) for row in range(16) for column in range(width)}
    assert whole == set(range(16 * width))


def test_passes_of_a_product() -> None:
    """What docs/cuda.md says of block_product, for every leading dimension of 4 modulo 8."""
    for leading in (12, 20, 28, 36, 68, 132, 260):
        found = {name: banks.product_step(leading, *kind) for name, kind in banks.KINDS.items()}
        assert found == {"A B": 20, "A B^T": 12, "A^T B": 24, "A^T B^T": 16}
        assert banks.product_store(leading) == 2
    assert banks.product_step(72, False, False) == 16 and banks.product_step(72, True, False) == 12


def test_roofline_prints(capsys) -> None:
    call = ["newton_schulz", "512", "64", "64", "--backward"]
    arguments = [*call, "--dtype", "bfloat16", "--device", "a100"]
    work = roofline.work_of(roofline.parse(arguments))
    text = roofline.lines(work, DEVICES["a100"])
    assert text[0].startswith("kernel      fused 64, tf32 arithmetic on A100")
    assert any("set by" in line for line in text) and "on a multiprocessor" in text[-1]
