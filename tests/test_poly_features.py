"""The polynomial map: its kernel identity, its order of monomials, its capacity."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from atlas_ext import poly_feature_dim, poly_features

each_degree = pytest.mark.parametrize("degree", [1, 2, 3, 4])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@each_degree
@pytest.mark.parametrize("dim", [1, 2, 5, 9])
def test_dimension_counts_monomials(dim: int, degree: int) -> None:
    monomials = sum(
        1
        for level in range(degree + 1)
        for _ in itertools.combinations_with_replacement(range(dim), level)
    )
    assert poly_feature_dim(dim, degree) == monomials
    assert poly_features(torch.ones(dim), degree).shape == (monomials,)


@each_degree
@pytest.mark.parametrize("dim", [1, 3, 8])
def test_products_are_the_kernel(dim: int, degree: int) -> None:
    x, y, scales = random(6, dim), random(6, dim, seed=1), random(degree + 1, seed=2)
    product = (x * y).sum(-1)
    actual = (poly_features(x, degree, scales) * poly_features(y, degree, scales)).sum(-1)
    wanted = sum(scales[level] ** 2 * product**level for level in range(degree + 1))
    torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@each_degree
def test_default_kernel_is_the_truncated_exponential(degree: int) -> None:
    x, y = 0.5 * random(4, 5), 0.5 * random(4, 5, seed=1)
    product = (x * y).sum(-1)
    actual = (poly_features(x, degree) * poly_features(y, degree)).sum(-1)
    wanted = sum(product**level / math.factorial(level) for level in range(degree + 1))
    torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-12)


@each_degree
def test_order_and_weights_of_the_monomials(degree: int) -> None:
    """Graded, row-major, each with c_l times the root of its multinomial coefficient."""
    x, scales = random(4), random(degree + 1, seed=1)
    wanted = []
    for level in range(degree + 1):
        for indices in itertools.combinations_with_replacement(range(4), level):
            repeats = [indices.count(index) for index in set(indices)]
            multinomial = math.factorial(level) / math.prod(map(math.factorial, repeats))
            value = math.prod(float(x[index]) for index in indices)
            wanted.append(float(scales[level]) * math.sqrt(multinomial) * value)
    actual = poly_features(x, degree, scales)
    torch.testing.assert_close(actual, torch.tensor(wanted, dtype=x.dtype), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dim, degree", [(5, 1), (4, 2), (3, 3)])
def test_least_squares_capacity(dim: int, degree: int) -> None:
    """Random pairs up to the number of features can be stored, one more cannot."""
    width = poly_feature_dim(dim, degree)
    keys, values = random(width + 1, dim), random(width + 1, 2, seed=1)

    def residual(pairs: int) -> float:
        features = poly_features(keys[:pairs], degree)  # [pairs, D]
        memory = torch.linalg.lstsq(features, values[:pairs], driver="gelsd").solution
        return float((features @ memory - values[:pairs]).norm())

    assert residual(width) < 1e-8
    assert residual(width + 1) > 1e-3


@pytest.mark.parametrize("magnitude", [1e-20, 1e-6, 1e8])
def test_magnitudes(magnitude: float) -> None:
    x = (magnitude * random(3, 4)).float()
    wanted = poly_features(x.double(), 2)
    torch.testing.assert_close(poly_features(x, 2).double(), wanted, rtol=1e-5, atol=1e-30)


def test_overflow_is_infinite_not_wrong() -> None:
    features = poly_features(torch.tensor([1e20, -1e20]), 2)
    assert features[0] == 1 and torch.isinf(features[3:]).all()
    assert features[4] < 0 < features[3]


def test_scales_in_another_dtype_than_x() -> None:
    x, scales = random(3, 4).bfloat16().requires_grad_(), torch.tensor([1.0, 0.3, 0.7])
    scales.requires_grad_()
    out = poly_features(x, 2, scales)
    assert out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.bfloat16
    assert scales.grad is not None and scales.grad.dtype == torch.float32
