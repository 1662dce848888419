"""Newton-Schulz: singular values, schedules, degenerate matrices, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from atlas_ext.reference import newton_schulz

MUON = (3.4445, -4.7750, 2.0315)


def through_singular_values(x: Tensor, rows: list[tuple[float, float, float]]) -> Tensor:
    """The same map on the singular values: an independent way to the result."""
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    s = s / (s.norm(dim=-1, keepdim=True) + 1e-7)
    for a, b, c in rows:
        s = a * s + b * s**3 + c * s**5
    return u @ (s[..., None] * vt)


@pytest.mark.parametrize("shape", [(6, 6), (3, 8), (8, 3), (1, 5), (5, 1), (2, 4, 3)])
def test_acts_on_singular_values(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    expected = through_singular_values(x, [MUON] * 5)
    torch.testing.assert_close(newton_schulz(x), expected, rtol=1e-10, atol=1e-10)
    table = torch.tensor([[2.0, -1.5, 0.5], [1.9, -1.2, 0.3]], dtype=torch.float64)
    expected = through_singular_values(x, [tuple(row) for row in table.tolist()])
    torch.testing.assert_close(newton_schulz(x, 2, table), expected, rtol=1e-10, atol=1e-10)


def test_polar_express() -> None:
    x = torch.randn(6, 6, dtype=torch.float64)
    u, _, vt = torch.linalg.svd(x)
    polar = u @ vt
    errors = [(newton_schulz(x, k, "polar_express") - polar).norm().item() for k in (2, 4, 6)]
    assert errors == sorted(errors, reverse=True)
    beyond = newton_schulz(x, 12, "polar_express")  # the last row repeats; it converges to one
    torch.testing.assert_close(beyond, polar, rtol=1e-10, atol=1e-10)
    # One row: the printed coefficients divided by powers of the safety factor.
    a, b, c = 8.28721201814563 / 1.01, -23.595886519098837 / 1.01**3, 17.300387312530933 / 1.01**5
    expected = through_singular_values(x, [(a, b, c)])
    torch.testing.assert_close(newton_schulz(x, 1, "polar_express"), expected)


def test_muon_range() -> None:
    x = torch.randn(20, 16, 64, dtype=torch.float64)
    s = torch.linalg.svdvals(newton_schulz(x))
    assert s.min() > 0.65
    assert s.max() < 1.25


def test_output_factors() -> None:
    x = torch.randn(8, 3, dtype=torch.float64)
    plain = newton_schulz(x)
    for y, m, n in ((x, 8, 3), (x.mT, 3, 8)):
        base = plain if m == 8 else plain.mT
        torch.testing.assert_close(newton_schulz(y, scale="rms"), 0.2 * math.sqrt(8) * base)
        factor = math.sqrt(max(1.0, m / n))
        torch.testing.assert_close(newton_schulz(y, scale="shape"), factor * base)


def test_rank_one() -> None:
    x = torch.outer(torch.randn(6).double(), torch.randn(9).double())
    s = torch.linalg.svdvals(newton_schulz(x))
    assert abs(s[0].item() - 0.70) < 0.01
    assert s[1] < 1e-6


def test_ill_conditioned() -> None:
    """Weak directions grow by the product of the a's at most, and nothing overflows."""
    q, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
    spectrum = 10.0 ** -torch.arange(8, dtype=torch.float64) * 2
    y = newton_schulz(q * spectrum)
    assert torch.isfinite(y).all()
    gain = torch.linalg.svdvals(y) / (spectrum / spectrum.norm())
    assert gain.max() <= MUON[0] ** 5 * (1 + 1e-6)
    for factor in (1e-30, 1e30):
        extreme = newton_schulz(factor * q)
        assert torch.isfinite(extreme).all()
    torch.testing.assert_close(newton_schulz(1e30 * q), newton_schulz(q), rtol=1e-5, atol=1e-5)


def test_zero_matrix() -> None:
    """Zero in, zero out, gradient zero, alone and within a batch; its neighbours are as alone."""
    for shape in ((3, 5), (5, 3)):
        x = torch.randn(3, *shape, dtype=torch.float64)
        x[1] = 0
        x.requires_grad_()
        y = newton_schulz(x)
        assert torch.equal(y[1], torch.zeros(shape, dtype=torch.float64))
        weight = torch.randn_like(y)
        (grad,) = torch.autograd.grad((weight * y).sum(), x)
        assert torch.equal(grad[1], torch.zeros(shape, dtype=torch.float64))
        for n in (0, 2):
            alone = x[n].detach().requires_grad_()
            (expected,) = torch.autograd.grad((weight[n] * newton_schulz(alone)).sum(), alone)
            torch.testing.assert_close(grad[n], expected, rtol=1e-12, atol=1e-12)
    lone = torch.zeros(4, 4, requires_grad=True)
    newton_schulz(lone, eps=0.0).sum().backward()
    assert torch.equal(lone.grad, torch.zeros(4, 4))


@pytest.mark.parametrize("schedule", ["muon", "polar_express"])
def test_gradients(schedule: str) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    for value in (x, y):
        assert torch.autograd.gradcheck(
            lambda x: newton_schulz(x, 3, schedule, scale="rms", eps=0.1), (value,)
        )


def test_dtypes_and_empty() -> None:
    x = torch.randn(3, 4, 6)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2), (torch.float16, 4e-3)):
        narrow = newton_schulz(x.to(dtype))
        assert narrow.dtype == dtype
        expected = newton_schulz(x.to(dtype).double())
        torch.testing.assert_close(narrow.double(), expected, rtol=tolerance, atol=tolerance)
    assert newton_schulz(torch.zeros(0, 4, 6)).shape == (0, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"x": torch.zeros(3)}, r"x: wanted \[\.\.\., m, n\] with m, n >= 1, got \[3\]"),
        ({"x": torch.zeros(3, 0)}, r"x: wanted .* got \[3, 0\]"),
        ({"x": torch.zeros(3, 3, dtype=torch.int32)}, "x: wanted a floating dtype"),
        ({"steps": 0}, "steps: wanted an integer >= 1, got 0"),
        ({"schedule": "other"}, "schedule: wanted one of 'muon', 'polar_express', got 'other'"),
        ({"schedule": torch.zeros(4, 3)}, r"schedule: wanted shape \[steps, 3\] = \[5, 3\]"),
        ({"scale": "max"}, "scale: wanted one of 'none', 'rms', 'shape', got 'max'"),
        ({"eps": -1.0}, "eps: wanted a finite number >= 0, got -1.0"),
    ],
)
def test_bad_input(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match="newton_schulz: " + text):
        newton_schulz(**{"x": torch.zeros(3, 3), **arguments})  # type: ignore[arg-type]
