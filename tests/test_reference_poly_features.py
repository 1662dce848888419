"""The polynomial feature map: kernel identity, order, weights, capacity."""

from __future__ import annotations

import math

import pytest
import torch

from atlas_ext.reference import poly_features


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_kernel_identity(degree: int) -> None:
    x, y = torch.randn(2, 7, 5, dtype=torch.float64)
    scales = torch.randn(degree + 1, dtype=torch.float64)
    dots = (x * y).sum(dim=-1)
    for c in (None, scales):
        kernel = (poly_features(x, degree, c) * poly_features(y, degree, c)).sum(dim=-1)
        squares = (
            [1 / math.factorial(level) for level in range(degree + 1)]
            if c is None
            else c.square().tolist()
        )
        expected = sum(square * dots**level for level, square in enumerate(squares))
        torch.testing.assert_close(kernel, expected, rtol=1e-12, atol=1e-12)


def test_order_and_weights() -> None:
    a, b, c = 2.0, 3.0, 5.0
    x = torch.tensor([a, b, c], dtype=torch.float64)
    root2, root3, root6 = math.sqrt(2), math.sqrt(3), math.sqrt(6)
    second = [a * a, root2 * a * b, root2 * a * c, b * b, root2 * b * c, c * c]
    third = [
        *(a**3, root3 * a * a * b, root3 * a * a * c),
        *(root3 * a * b * b, root6 * a * b * c, root3 * a * c * c),
        *(b**3, root3 * b * b * c, root3 * b * c * c, c**3),
    ]
    expected = [1.0, a, b, c, *(term / root2 for term in second), *(term / root6 for term in third)]
    actual = poly_features(x, 3)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))
    assert torch.equal(poly_features(x, 2), actual[:10])


def test_dtypes_and_shapes() -> None:
    x = torch.randn(2, 3, 4)
    wide = poly_features(x.double(), 2)
    for dtype, tolerance in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)):
        narrow = poly_features(x.to(dtype), 2)
        assert narrow.dtype == dtype
        rounded = poly_features(x.to(dtype).double(), 2)
        torch.testing.assert_close(narrow.double(), rounded, rtol=tolerance, atol=tolerance)
    assert wide.shape == (2, 3, 15)
    assert poly_features(torch.zeros(0, 4), 2).shape == (0, 15)
    assert poly_features(torch.zeros(3, 1), 4).shape == (3, 5)


def test_gradients() -> None:
    x = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    scales = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, c: poly_features(x, 3, c), (x, scales))


@pytest.mark.parametrize("degree", [None, 1, 2, 3])
def test_rank_limit(degree: int | None) -> None:
    """Random pairs are fitted exactly up to D of them and not beyond (Propositions 1 and 2)."""
    key_dim, value_dim = 4, 3
    features = key_dim if degree is None else math.comb(key_dim + degree, degree)
    for pairs, fits in ((features, True), (features + 5, False)):
        keys = torch.randn(pairs, key_dim, dtype=torch.float64)
        values = torch.randn(pairs, value_dim, dtype=torch.float64)
        x = keys if degree is None else poly_features(keys, degree)
        solution = torch.linalg.lstsq(x, values, driver="gelsd").solution
        residual = (x @ solution - values).norm() / values.norm()
        assert (residual < 1e-6) == fits
        if not fits:
            assert residual > 1e-2


@pytest.mark.parametrize("degree", [0, 5, -1, 2.0, None])
def test_bad_degree(degree: object) -> None:
    with pytest.raises(ValueError, match="poly_features: degree: wanted an integer from 1 to 4"):
        poly_features(torch.zeros(2, 3), degree)  # type: ignore[arg-type]


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"poly_features: x: wanted a floating dtype, got .*int64"):
        poly_features(torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"poly_features: x: wanted .*\[\.\.\., K\], got \[\]"):
        poly_features(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"poly_features: scales: wanted shape \[3\].*got \[2\]"):
        poly_features(torch.zeros(2, 3), 2, torch.zeros(2))
