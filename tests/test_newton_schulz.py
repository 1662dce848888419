"""Newton-Schulz: what it does to special matrices, its scales and its schedules."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atlas_ext import newton_schulz, reference
from atlas_ext.testing import conditioned, relative_error


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def gradient(x: Tensor, **options: object) -> Tensor:
    leaf = x.clone().requires_grad_()
    out = newton_schulz(leaf, **options)
    weight = random(*x.shape, seed=9).to(x.dtype)
    (grad,) = torch.autograd.grad((out * weight).sum(), leaf)
    return grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 4), (5, 2), (1, 1), (2, 3, 7)])
def test_zero_in_zero_out_zero_gradient(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.zeros(shape, dtype=dtype)
    assert torch.equal(newton_schulz(x), x)
    assert torch.equal(gradient(x), x)


@pytest.mark.parametrize("zero", [0, 1, 2])
def test_one_zero_matrix_in_a_batch(zero: int) -> None:
    x = conditioned(generator(), 3, 4, 5)
    x[zero] = 0
    rest = [index for index in range(3) if index != zero]
    out, grad = newton_schulz(x), gradient(x)
    assert not out[zero].any() and not grad[zero].any()
    assert relative_error(out[rest], reference.newton_schulz(x[rest])) < 1e-12
    leaf = x[rest].clone().requires_grad_()
    weight = random(3, 4, 5, seed=9)[rest]
    (wanted,) = torch.autograd.grad((reference.newton_schulz(leaf) * weight).sum(), leaf)
    assert relative_error(grad[rest], wanted) < 1e-9


def test_batch_is_matrix_by_matrix() -> None:
    x = random(2, 3, 5, 4)
    single = torch.stack([newton_schulz(matrix) for matrix in x.flatten(0, 1)]).view_as(x)
    assert relative_error(newton_schulz(x), single) < 1e-12


@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (9, 2)])
def test_rank_one_ends_near_0_70(shape: tuple[int, int]) -> None:
    x = random(shape[0], 1) @ random(1, shape[1], seed=1)
    out = newton_schulz(x)
    values = torch.linalg.svdvals(out)
    assert 0.6 < float(values[0]) < 0.8
    assert float(values[1:].max()) < 1e-12
    assert relative_error(newton_schulz(x.float()), out) < 5e-4


@pytest.mark.parametrize("shape", [(6, 6), (4, 11), (12, 5)])
def test_singular_vectors_stay_and_values_approach_one(shape: tuple[int, int]) -> None:
    x = conditioned(generator(), *shape)
    out = newton_schulz(x)
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    core = left.mT @ out @ right.mT
    assert float((core - torch.diag(torch.diagonal(core))).norm()) < 1e-10
    values = torch.linalg.svdvals(out)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.25


def test_polar_express_converges() -> None:
    x = random(6, 9)
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    assert relative_error(newton_schulz(x, 10, "polar_express"), left @ right) < 1e-6


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e8])
@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (12, 5)])
def test_ill_conditioned_against_fp64(shape: tuple[int, int], condition: float) -> None:
    left, _, right = torch.linalg.svd(random(*shape), full_matrices=False)
    values = torch.logspace(0, -math.log10(condition), min(shape), dtype=torch.float64)
    x = ((left * values) @ right).float()
    wanted = reference.newton_schulz(x.double())
    assert relative_error(newton_schulz(x), wanted) < 5e-4
    assert relative_error(newton_schulz(x.double()), wanted) < 1e-9


@pytest.mark.parametrize("shape", [(16, 64), (64, 256), (256, 64), (64, 153)])
def test_gram_form_is_as_accurate_as_the_direct_form(shape: tuple[int, int]) -> None:
    """An elongated matrix goes through powers of its Gram matrix; the direct form multiplies X."""

    def direct(x: Tensor) -> Tensor:
        x = x if shape[0] <= shape[1] else x.mT
        x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
        for _ in range(5):
            gram = x @ x.mT
            x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
        return x if shape[0] <= shape[1] else x.mT

    n = min(shape)
    left, _, right = torch.linalg.svd(random(12, *shape), full_matrices=False)
    spectra = [
        torch.logspace(0, -5, n, dtype=torch.float64),
        torch.tensor([1.0] * (n - 1) + [1e-3], dtype=torch.float64),
        torch.tensor([1.0] * (n // 4) + [0.0] * (n - n // 4), dtype=torch.float64),
    ]
    errors = []
    for values in spectra:
        x = ((left * values) @ right).float()
        wanted = reference.newton_schulz(x.double())
        errors.append([relative_error(f(x), wanted) for f in (newton_schulz, direct)])
    ours, theirs = torch.tensor(errors, dtype=torch.float64).square().mean(0).sqrt().tolist()
    assert ours <= theirs, errors


@pytest.mark.parametrize("magnitude", [1e-20, 1e-12, 1e12, 1e20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_magnitudes(dtype: torch.dtype, magnitude: float) -> None:
    """Squares of such entries leave float32's range; the norm and its gradient must not."""
    x = (magnitude * conditioned(generator(), 2, 4, 6)).to(dtype)
    tolerance = {torch.float32: 5e-4, torch.float64: 1e-9, torch.bfloat16: 1e-1}[dtype]
    wide = x.double().requires_grad_()
    wanted = reference.newton_schulz(wide)
    assert relative_error(newton_schulz(x), wanted) < tolerance
    weight = random(2, 4, 6, seed=9).to(dtype).double()
    (grad,) = torch.autograd.grad((wanted * weight).sum(), wide)
    if float(grad.abs().max()) < 1e37:
        assert relative_error(gradient(x), grad) < tolerance


@pytest.mark.parametrize("sides", [(520, 513), (1025, 1026)])
def test_zero_among_large_matrices(sides: tuple[int, int]) -> None:
    """Threads share large matrices, torch multiplies larger ones: the zero rule holds, too."""
    x = random(2, *sides).float()
    x[1] = 0
    assert not newton_schulz(x)[1].any()
    grad = gradient(x)
    assert grad[0].isfinite().all() and grad[0].any() and not grad[1].any()


@pytest.mark.parametrize("shape", [(3, 7), (7, 3)])
def test_transposing_commutes(shape: tuple[int, int]) -> None:
    x = random(2, *shape)
    assert relative_error(newton_schulz(x.mT), newton_schulz(x).mT) < 1e-12


@pytest.mark.parametrize("m, n", [(3, 7), (7, 3), (4, 4)])
def test_scales_use_rows_and_columns_as_given(m: int, n: int) -> None:
    x = random(m, n)
    plain = newton_schulz(x)
    factors = {"none": 1.0, "rms": 0.2 * math.sqrt(max(m, n)), "shape": math.sqrt(max(1.0, m / n))}
    for scale, factor in factors.items():
        assert relative_error(newton_schulz(x, scale=scale), factor * plain) < 1e-12, scale


def test_one_step_by_hand() -> None:
    x, (a, b, c) = random(3, 5), (1.5, -0.7, 0.3)
    unit = x / (x.norm() + 0.5)
    gram = unit @ unit.mT
    wanted = a * unit + (b * gram + c * gram @ gram) @ unit
    table = torch.tensor([[a, b, c]], dtype=torch.float64)
    assert relative_error(newton_schulz(x, 1, table, eps=0.5), wanted) < 1e-13


def test_named_schedule_equals_its_table() -> None:
    x = random(2, 4, 6)
    muon = torch.tensor([[3.4445, -4.7750, 2.0315]], dtype=torch.float64).repeat(5, 1)
    assert relative_error(newton_schulz(x), newton_schulz(x, 5, muon)) < 1e-12
    row = (8.28721201814563 / 1.01, -23.595886519098837 / 1.01**3, 17.300387312530933 / 1.01**5)
    wanted = newton_schulz(x, 1, torch.tensor([row], dtype=torch.float64))
    assert relative_error(newton_schulz(x, 1, "polar_express"), wanted) < 1e-12


@pytest.mark.parametrize("shape", [(300, 270), (2, 1, 520, 530), (1026, 1030)])
@pytest.mark.parametrize("schedule", ["muon", "polar_express"])
def test_large_matrices(shape: tuple[int, ...], schedule: str) -> None:
    x = random(*shape)
    leaf = x.clone().requires_grad_()
    weight = random(*shape, seed=9)
    expected = reference.newton_schulz(leaf, 3, schedule, scale="rms")
    (wanted,) = torch.autograd.grad((expected * weight).sum(), leaf)
    out = newton_schulz(leaf, 3, schedule, scale="rms")
    (grad,) = torch.autograd.grad((out * weight).sum(), leaf)
    assert relative_error(out, expected) < 1e-9
    assert relative_error(grad, wanted) < 1e-9
    assert relative_error(newton_schulz(x.float(), 3, schedule, scale="rms"), expected) < 5e-4


@pytest.mark.parametrize("shape", [(193, 340), (300, 270), (205, 205), (200, 410), (410, 200)])
def test_threads_that_share_a_matrix_change_no_bit(shape: tuple[int, int], threads: None) -> None:
    x = random(*shape).float()
    found = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append((newton_schulz(x), gradient(x)))
    for out, grad in found[1:]:
        assert torch.equal(out, found[0][0])
        assert torch.equal(grad, found[0][1])
