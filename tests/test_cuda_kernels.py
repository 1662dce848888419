"""The CUDA kernels on the emulated backend, where the registry's cases leave something open.

Devices of several capabilities, every kernel instance, sides at and beyond the tiles, extreme
magnitudes, odd addresses, orders of threads, and which path a call took.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_checks import CAPABILITIES
from cuda_instances import (
    GROUPS,
    TF32_TOLERANCE,
    Call,
    OmegaCall,
    calls,
    compiled_instances,
    launches,
    record,
    short_name,
    team_call,
    two_heads_call,
)
from torch import Tensor

import atlas_ext
from atlas_ext import reference, testing
from atlas_ext.__main__ import OPERATORS
from atlas_ext._case import ORTHOGONALISED_TOLERANCE, PLAIN_TOLERANCE

pytestmark = pytest.mark.usefixtures("emulator", "matmul_precision")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SIZES = (
    (5, 16, 16),  # four matrices a block, and one over
    (2, 20, 7),  # padded both ways
    (1, 64, 64),
    (1, 64, 153),  # wide, elongated, rows that are no multiple of 16
    (1, 256, 64),  # long: fits in shared memory from sm_80 or sm_90 on, by dtype
    (1, 100, 128),
    (1, 128, 128),
    (1, 200, 150),  # beyond the tiles: products
)
Function = Callable[[Tensor], Tensor]


def matrices(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return testing.conditioned(torch.Generator().manual_seed(1), *shape).to(dtype)


def cotangent(shape: torch.Size, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)


def with_gradient(
    function: Function, x: Tensor, grad: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The output, and x's gradient for a fixed output gradient in x's dtype."""
    leaf = x.detach().requires_grad_()
    out = function(leaf)
    grad = cotangent(out.shape, x.dtype) if grad is None else grad
    (grad_x,) = torch.autograd.grad(out, leaf, grad.to(out.dtype))
    return out.detach(), grad_x


def check(
    actual: tuple[Tensor, ...], wanted: tuple[Tensor, ...], tolerance: float, what: str = ""
) -> None:
    for name, a, w in zip(("value", "gradient"), actual, wanted, strict=True):
        error = testing.relative_error(a, w)
        assert error <= tolerance, f"{what} {name}: relative error {error:.1e} over {tolerance:.0e}"


def reference_of(x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    grad = cotangent(x.shape, x.dtype).double()
    return with_gradient(lambda v: reference.newton_schulz(v, **options), x.double(), grad)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_newton_schulz_sizes(shape: tuple[int, ...], dtype: torch.dtype, capability: int) -> None:
    x = matrices(*shape, dtype=dtype)
    with testing.emulated(order="random", seed=3, capability=capability):
        actual = with_gradient(atlas_ext.newton_schulz, x)
    check(actual, reference_of(x), ORTHOGONALISED_TOLERANCE[dtype])


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_newton_schulz_tf32(shape: tuple[int, ...]) -> None:
    x = matrices(*shape)
    torch.set_float32_matmul_precision("high")
    with testing.emulated(cp_async="late") as backend:
        backend.reset_counters()
        actual = with_gradient(atlas_ext.newton_schulz, x)
        assert (backend.counters()["mma"] > 0) == (max(shape) <= 256 and min(shape[1:]) <= 128)
    check(actual, reference_of(x), TF32_TOLERANCE)


# Launches of (forward, backward): 1 where the fused kernel took it, 0 where products did.
FUSED = [
    (80, torch.float32, (64, 64), (1, 1)),
    (80, torch.float32, (128, 128), (1, 0)),  # the backward holds too much
    (80, torch.float16, (72, 100), (1, 1)),
    (80, torch.float16, (128, 128), (1, 0)),
    (90, torch.float16, (128, 128), (1, 1)),
    (80, torch.float32, (129, 129), (0, 0)),
    (75, torch.float32, (128, 128), (0, 0)),
    (75, torch.bfloat16, (32, 32), (1, 1)),
    (75, torch.float16, (64, 64), (1, 1)),
    (80, torch.bfloat16, (16, 4096), (0, 0)),  # one side is too long for shared memory
]


@pytest.mark.parametrize(("capability", "dtype", "shape", "wanted"), FUSED, ids=str)
def test_newton_schulz_path(
    capability: int, dtype: torch.dtype, shape: tuple[int, int], wanted: tuple[int, int]
) -> None:
    leaf = matrices(*shape, dtype=dtype).requires_grad_()
    counts = []
    with testing.emulated(capability=capability) as backend:
        backend.reset_counters()
        out = atlas_ext.newton_schulz(leaf, steps=1)
        counts.append(backend.counters()["launches"])
        torch.autograd.grad(out, leaf, out.detach())
        counts.append(backend.counters()["launches"] - counts[0])
    assert tuple(counts) == wanted


def test_build_information_lists_what_has_kernels() -> None:
    source = (Path(__file__).parents[1] / "csrc/ops/build_info.cpp").read_text()
    listed = "".join(re.findall(r'text \+= "([a-z_ ]+)";', source)).split()
    assert listed == [name for name in OPERATORS if testing.has_emulated_kernel(name)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [16, 40, 150])
def test_zero_matrices_among_others(side: int, dtype: torch.dtype) -> None:
    x = matrices(6, side, side + 3, dtype=dtype)
    x[[0, 3]] = 0
    with testing.emulated():
        out, grad = with_gradient(atlas_ext.newton_schulz, x)
    for result in (out, grad):
        assert result[[0, 3]].count_nonzero() == 0
    check((out, grad), reference_of(x), ORTHOGONALISED_TOLERANCE[dtype])


@pytest.mark.parametrize("side", [16, 48, 150])
@pytest.mark.parametrize("magnitude", [1e-20, 1e20])
def test_magnitudes(magnitude: float, side: int) -> None:
    x = matrices(3, side, side + 8) * magnitude
    with testing.emulated():
        out, grad = with_gradient(lambda v: atlas_ext.newton_schulz(v, eps=0.0), x)
    wanted_out, wanted_grad = reference_of(x, eps=0.0)
    tolerance = ORTHOGONALISED_TOLERANCE[torch.float32]
    # float32 sums of squares of the gradient would themselves leave the range.
    check((out, grad.double() * magnitude), (wanted_out, wanted_grad * magnitude), tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["offset", "transposed", "every other"])
@pytest.mark.parametrize("shape", [(3, 32, 48), (3, 48, 32)], ids=str)  # upright: cp.async
def test_odd_addresses_and_strides(shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    plain = matrices(*shape, dtype=dtype)
    if layout == "offset":
        x = torch.cat([plain.new_zeros(1), plain.flatten()])[1:].view_as(plain)
        assert x.data_ptr() % 16 != 0
    elif layout == "transposed":
        x = plain.transpose(-1, -2).contiguous().transpose(-1, -2)
    else:
        x = plain.repeat_interleave(2, dim=-1)[..., ::2]
    grad = cotangent(plain.shape, dtype)
    odd_grad = torch.cat([grad.new_zeros(1), grad.flatten()])[1:].view_as(grad)
    rows = x[:, :, :7]
    with testing.emulated(cp_async="late"):
        actual = with_gradient(atlas_ext.newton_schulz, x, odd_grad)
        wanted = with_gradient(atlas_ext.newton_schulz, plain, grad)
        features = atlas_ext.poly_features(rows)
        wanted_features = atlas_ext.poly_features(rows.clone(memory_format=torch.contiguous_format))
    assert torch.equal(actual[0], wanted[0]) and torch.equal(actual[1], wanted[1])
    assert torch.equal(features, wanted_features)


@pytest.mark.parametrize("shape", [(3, 24, 20), (2, 16, 48)], ids=str)  # square-ish, elongated
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("schedule", ["polar_express", "table"])
def test_long_and_custom_schedules(
    schedule: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    table = torch.tensor([[1.5 + 0.1 * i, -0.5 - 0.05 * i, 0.1] for i in range(9)])
    x = matrices(*shape, dtype=dtype)
    options: dict[str, Any] = {"steps": 9, "schedule": table if schedule == "table" else schedule}
    options["scale"] = "rms"
    with testing.emulated():
        actual = with_gradient(lambda v: atlas_ext.newton_schulz(v, **options), x)
    check(actual, reference_of(x, **options), ORTHOGONALISED_TOLERANCE[dtype])


POLY = [(k, p) for k in (1, 16, 19, 40, 64) for p in range(1, 5) if k**p < 70_000]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("k", "degree"), POLY)
def test_poly_features_sizes(k: int, degree: int, dtype: torch.dtype) -> None:
    """Ten rows: two whole groups of four and a part, or one of eight and a part."""
    call = Call(dtype, (10, k), degree)
    wanted = call.run_reference()
    for name, value in call.run_emulated(80).items():
        error = testing.relative_error(value, wanted[name])
        assert error <= PLAIN_TOLERANCE[dtype], f"{name}: relative error {error:.1e}"


@pytest.mark.parametrize("wanted", [("x",), ("scales",), ("x", "scales")], ids="-".join)
def test_poly_features_grad_masks(wanted: tuple[str, ...]) -> None:
    inputs = Call(torch.float32, (9, 6), 3).inputs()
    both = Call(torch.float32, (9, 6), 3).run_emulated(80)
    leaves = {k: v.clone().requires_grad_(k in wanted) for k, v in inputs.items()}
    with testing.emulated():
        out = atlas_ext.poly_features(leaves["x"], 3, leaves["scales"])
        grads = torch.autograd.grad(
            out, [leaves[name] for name in wanted], cotangent(out.shape, out.dtype)
        )
    for name, grad in zip(wanted, grads, strict=True):
        assert torch.equal(grad, both[name]), name


def test_poly_features_sums_in_device_memory() -> None:
    """K = 32 at degree 4 leaves sums for which an sm_75's shared memory is too small."""
    call = Call(torch.float32, (3, 32), 4)
    wanted = call.run_reference()
    for name, value in call.run_emulated(75).items():
        assert testing.relative_error(value, wanted[name]) <= PLAIN_TOLERANCE[torch.float32], name


def test_blocks_take_turns() -> None:
    """Blocks that take several turns: one multiprocessor's worth of them."""
    x, m = testing.normal(torch.Generator().manual_seed(1), 150, 5).float(), matrices(25, 16, 16)
    with testing.emulated() as backend:
        backend.set_device(80, multiprocessors=1)
        poly = with_gradient(lambda v: atlas_ext.poly_features(v, 3), x)
        ns = with_gradient(atlas_ext.newton_schulz, m)
    grad = cotangent(poly[0].shape, x.dtype).double()
    check(
        poly,
        with_gradient(lambda v: reference.poly_features(v, 3), x.double(), grad),
        PLAIN_TOLERANCE[torch.float32],
    )
    check(ns, reference_of(m), ORTHOGONALISED_TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", ["poly_features", "newton_schulz"])
def test_float64_is_refused(name: str) -> None:
    with (
        testing.emulated(),
        pytest.raises(RuntimeError, match=rf"{name}: x: wanted float32, .* got float64"),
    ):
        getattr(atlas_ext, name)(torch.ones(4, 4, dtype=torch.float64))


@pytest.mark.parametrize(
    "call",
    [
        *(Call(t, shape) for t in DTYPES for shape in ((5, 20, 7), (1, 64, 48))),
        Call(torch.float32, (3, 24, 40), precision="high"),
        Call(torch.float32, (70, 12), 3),
        Call(torch.bfloat16, (9, 19), 2),
    ],
    ids=lambda call: call.id,
)
def test_orders_of_threads_give_the_same_bits(call: Call) -> None:
    results = []
    torch.set_float32_matmul_precision(call.precision)
    for order, copies in (("forward", "early"), ("reverse", "late"), ("random", "random")):
        with testing.emulated(order=order, seed=5, cp_async=copies):
            results.append(call.run(call.inputs()))
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def tolerance(call: Call | OmegaCall) -> float:
    if isinstance(call, OmegaCall):
        return call.tolerance
    if call.precision == "high":
        return TF32_TOLERANCE
    return (PLAIN_TOLERANCE if call.degree else ORTHOGONALISED_TOLERANCE)[call.dtype]


@pytest.mark.parametrize("group", GROUPS)
def test_every_call_of_the_instances(group: str) -> None:
    for call in calls(group):
        wanted = call.run_reference()
        for name, value in call.run_emulated(GROUPS[group][0]).items():
            error = testing.relative_error(value, wanted[name])
            assert error <= tolerance(call), f"{group} {call.id} {name}: {error:.1e}"


def test_calls_take_the_plans_that_they_name() -> None:
    """A forward and a backward: two blocks of one multiprocessor each; a launch for every chunk."""
    with testing.emulated() as backend:
        backend.reset_counters()
        two_heads_call(torch.float32, "highest").run_emulated(80)
        counters = backend.counters()
        assert (counters["launches"], counters["blocks"]) == (2, 2 * 2)
        team_call(torch.float32, "highest").run_emulated(80)
        assert backend.counters()["launches"] > 2 + 2


def test_every_instance_is_launched(tmp_path: Path) -> None:
    seen = set()
    for group in GROUPS:
        record(tmp_path / group, group)
        seen |= {launch["kernel"] for launch in launches(tmp_path / group)}
    assert {short_name(name) for name in compiled_instances() - seen} == set()
