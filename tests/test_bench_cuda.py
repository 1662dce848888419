"""`python -m bench.run --device ...`: what can be tested of it without a GPU."""

from __future__ import annotations

import json

import pytest
import torch

import atlas_ext
from atlas_ext import testing
from bench import cuda, run
from bench.cuda_cases import OMEGA, OmegaCase, omega_case
from bench.timing import DIRECTIONS

SMALL = cuda.CudaCase("newton_schulz", (4, 16, 16))


class Ticks:
    """A stopwatch that runs its calls and shows what it was told to."""

    def medians(self, calls, rounds):
        for call in calls.values():
            call()
        return {"ours": 1e-4, "eager": 5e-4}


def test_says_that_there_is_no_device(capsys, tmp_path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert run.main(["--device", "cuda", "--json", str(tmp_path / "x.json")]) == 1
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_emulated_kernels_are_checked(capsys, monkeypatch, tmp_path) -> None:
    if cuda.unavailable("emulated"):
        pytest.skip("no emulated library")
    monkeypatch.setattr(cuda, "CASES", (SMALL, cuda.CudaCase("poly_features", (9, 5), 9)))
    assert run.main(["--device", "emulated", "--json", str(tmp_path / "x.json")]) == 0
    assert capsys.readouterr().out.count(": right: output") == 7
    assert not list(tmp_path.iterdir())


def test_wrong_results_fail(capsys, monkeypatch, tmp_path) -> None:
    if cuda.unavailable("emulated"):
        pytest.skip("no emulated library")
    monkeypatch.setattr(cuda, "CASES", (SMALL,))
    right = atlas_ext.newton_schulz
    monkeypatch.setattr(atlas_ext, "newton_schulz", lambda x: right(x) * 1.2)
    assert run.main(["--device", "emulated", "--json", str(tmp_path / "x.json")]) == 1
    assert "WRONG" in capsys.readouterr().out


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_rates(monkeypatch, direction) -> None:
    def inputs(case, dtype, device, batch=None):
        return testing.normal(torch.Generator().manual_seed(0), *case.shape).to(dtype)

    monkeypatch.setattr(cuda.CudaCase, "inputs", inputs)
    best = {"copy": 1e12, "bfloat16": 1e12}
    found = cuda.measure(SMALL, "bfloat16", direction, Ticks(), best, rounds=1)
    both = direction == DIRECTIONS[1]
    useful = 4 * 5 * 6 * 16**3 * (3 if both else 1)
    assert found["flop/s"] == pytest.approx(useful / 1e-4)
    assert found["bytes/s"] == pytest.approx(4 * 16 * 16 * 2 * (5 if both else 2) / 1e-4)
    text = cuda.row(SMALL, "bfloat16", direction, found)
    assert text[3:6] == ("100.0", "500.0", "5.00") and len(text) == len(cuda.HEADER)


@pytest.mark.parametrize("name", OMEGA)
def test_omega_cases_are_those_of_the_cpu(name) -> None:
    case = omega_case(name)
    sizes = case.case.inputs(64)
    assert [w.shape[-2:] for w in sizes["weights"]] == [x[::-1] for x in case.rule.matrices]
    found = sizes["q"].shape[-1], sizes["v"].shape[-1], sizes["gamma"].shape[-1]
    assert found == (case.rule.K, case.rule.V, case.rule.W)
    assert case.case.options.get("degree", 0) == case.rule.degree
    assert case.case.options.get("ns_steps", 0) == case.rule.ns_steps
    assert json.dumps(case.record())


def test_omega_rule_is_checked_and_rated(monkeypatch) -> None:
    if cuda.unavailable("emulated"):
        pytest.skip("no emulated library")
    case = omega_case("omega_rule linear, T2048")
    errors = cuda.check(case, "bfloat16", "cpu")
    wanted = ["output"]
    if len(case.directions("emulated")) > 1:
        wanted += [f"grad_{name}" for name in case.tensors(torch.bfloat16, "cpu", True)]
    assert [name.partition("[")[0] for name in errors] == wanted
    assert all(error <= allowed for error, allowed in errors.values()), errors
    small = case.tensors(torch.float32, "cpu", checked=True)
    monkeypatch.setattr(OmegaCase, "tensors", lambda *_: small)
    found = cuda.measure(case, "float32 high", "forward", Ticks(), {"float32 high": 1e13}, rounds=1)
    work = case.work("float32", True, False)
    assert found["flop/s"] == pytest.approx(work.useful / 1e-4)
    assert found["share"] == pytest.approx(work.useful / 1e9)
