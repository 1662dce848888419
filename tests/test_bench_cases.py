"""The cases of the benchmark are complete and right, and wrong ones are seen; nothing is timed."""

from __future__ import annotations

import pytest
import torch

import atlas_ext
import atlas_ext.reference as reference
from atlas_ext import testing
from bench import eager
from bench.cases import OPS, cases
from bench.cases.base import SIZES, Case, Shape
from bench.cases.layer import PlainLayer
from bench.cases.model import DecodeCase
from bench.cases.update import UpdateCase
from bench.measure import require_right
from bench.setting import DEVICES, Setting

CPU = Setting("cpu", "float32")
ALL = cases("cpu", OPS, SIZES)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_cases_are_complete(case: Case) -> None:
    assert case.op in OPS and case.size in SIZES
    assert [other.name for other in ALL].count(case.name) == 1
    assert len({rival.name for rival in case.rivals}) == len(case.rivals)
    assert case.flops(case.directions[-1]) > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("op", OPS)
def test_every_operator_has_every_size(device, op) -> None:
    sizes = {case.size for case in cases(device, [op], SIZES)}
    assert sizes == (set(SIZES) if device != "emulated" else {"small"})


@pytest.mark.parametrize("op", OPS)
def test_families_differ_in_length_alone(op) -> None:
    found: dict[str, list[Case]] = {}
    for case in cases("cuda", [op], SIZES):
        found.setdefault(case.family, []).append(case)
    for family in found.values():
        lengths = [case.shape.length for case in family]
        assert lengths == sorted(set(lengths)) and len(lengths) == len(SIZES)
        assert len({case.shape._replace(length=0) for case in family}) == 1


# One head and two chunks; the same families at any length.
QUICK = cases("emulated", OPS, SIZES)


@pytest.mark.parametrize("case", QUICK, ids=lambda case: case.name)
def test_small_cases_are_right(case: Case) -> None:
    assert require_right(case, CPU) == ""


def test_wrong_cases_are_seen(monkeypatch) -> None:
    case = next(case for case in QUICK if case.op == "newton_schulz")
    right = atlas_ext.newton_schulz
    monkeypatch.setattr(atlas_ext, "newton_schulz", lambda x: right(x) * 1.01)
    assert "output" in require_right(case, CPU)


def test_longer_cases_meet_eager_pytorch(monkeypatch) -> None:
    case = next(c for c in ALL if c.op == "poly_features" and c.size == "train")
    assert require_right(case, CPU) == ""
    right = atlas_ext.poly_features
    monkeypatch.setattr(atlas_ext, "poly_features", lambda x, degree: right(x, degree) * 1.01)
    assert "output" in require_right(case, CPU)


def test_decoding_is_checked_against_the_reference() -> None:
    config = {"memory": "linear", "num_layers": 1, "hidden_size": 32, "num_heads": 2}
    case = DecodeCase(
        op="omega_rule_update", family="small", size="small", shape=Shape(70), rivals=(),
        preset="atlas-tiny", tokens=40, overrides=config,
    )  # fmt: skip
    assert require_right(case, CPU) == ""
    assert int(case.cache_after(8).position) == 8


UPDATES = [case for case in QUICK if isinstance(case, UpdateCase)]


@pytest.mark.parametrize("case", UPDATES, ids=lambda case: case.name)
def test_timed_updates_leave_the_state_finite(case: UpdateCase) -> None:
    inputs = case.inputs(CPU, case.short)
    before = [t.clone() for t in testing.named_tensors(inputs["state"]).values()]
    with torch.no_grad():
        for _ in range(300):
            getattr(atlas_ext, case.op)(**inputs, **case.options)
    after = testing.named_tensors(inputs["state"]).values()
    for old, new in zip(before, after, strict=True):
        if old.is_floating_point():
            assert 0.1 < float(new.norm() / old.norm()) < 10.0


@pytest.mark.parametrize("case", UPDATES, ids=lambda case: case.name)
def test_eager_updates(case: UpdateCase) -> None:
    """Outputs and states over the end of a chunk."""
    found = []
    options = {"chunk_size": 4} | {n: x for n, x in case.options.items() if n == "residual"}
    for module, more in ((eager, {}), (reference, {"objective": "l2"})):
        inputs = testing.wide_inputs(case.inputs(CPU, case.short, step=0.01))
        with torch.no_grad():
            outputs = [getattr(module, case.op)(**inputs, **options, **more) for _ in range(6)]
        tensors = testing.named_tensors({"o": outputs, "state": inputs["state"]})
        found.append(tensors)
    ours, expected = found
    assert ours.keys() == expected.keys()
    for name in ours:
        assert testing.relative_error(ours[name], expected[name]) < 1e-9, name


def test_bytes_of_an_update() -> None:
    """Every matrix of the state is read, all but the chunk's are written."""
    case = next(case for case in UPDATES if case.family.startswith("mlp"))
    state = case.inputs(CPU, case.shape)["state"]
    read = sum(t.nbytes for t in (*state.weights, *state.momentum, *state.chunk_weights))
    written = sum(t.nbytes for t in (*state.weights, *state.momentum))
    assert case.moved("decode", CPU) == read + written


def test_plain_layer_equals_itself_with_the_reference() -> None:
    torch.manual_seed(0)
    layer, x = PlainLayer().double(), torch.randn(1, 64, 256, dtype=torch.float64)
    expected = layer(x, reference.omega_rule)
    assert testing.relative_error(layer(x, eager.omega_rule), expected) < 1e-9
