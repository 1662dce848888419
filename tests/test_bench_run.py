"""`python -m bench.run`: refusals, tables, plots and the page; no speed is asserted."""

from __future__ import annotations

import json
import re
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch

import atlas_ext
from atlas_ext import testing
from bench import gate, measure, page, plots, report, revision, run, setting
from bench.cases import cases
from bench.cases.base import Rival
from bench.compiled import compiled
from bench.device import Cpu
from bench.setting import Setting
from bench.timing import DIRECTIONS

ROOT = Path(__file__).resolve().parents[1]
CPU = Setting("cpu", "float32")
QUICK = ["--op", "poly_features", "--size", "small", "--rounds", "3"]
BOUNDS = {"copy": 1e10, "clone": 1e10, "mm float32": 1e11, "fma": 2e11}


@pytest.fixture
def without_inductor(monkeypatch, threads) -> None:
    """What is compiled is run as it is: these tests are not about it."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(Cpu, "ceilings", lambda self, dtypes: BOUNDS)
    compiled.cache_clear()
    yield
    compiled.cache_clear()


def plant(monkeypatch, op: str, wrong) -> None:
    """Another operator in the place of `op`, for the registry and the benchmark alike."""
    monkeypatch.setattr(import_module(f"atlas_ext.ops.{op}"), op, wrong)
    monkeypatch.setattr(atlas_ext, op, wrong)


def test_wrong_operator_gets_no_ratio(capsys, monkeypatch, tmp_path, without_inductor) -> None:
    right = atlas_ext.poly_features
    plant(monkeypatch, "poly_features", lambda *args, **options: 1.001 * right(*args, **options))
    path = tmp_path / "x.json"
    assert (
        run.main(["--op", "poly_features", "newton_schulz", *QUICK[2:], "--json", str(path)]) == 1
    )
    found = json.loads(path.read_text())
    assert {line["op"] for line in found["runs"]} == {"newton_schulz"}
    failed = next(entry for entry in found["gates"] if entry["op"] == "poly_features")["failed"]
    assert failed and "relative errors over" in failed[0]
    assert "poly_features, float32: REFUSED: 8 of 9 cases wrong" in capsys.readouterr().out


def test_wrong_gradient_is_a_wrong_operator(monkeypatch) -> None:
    right = atlas_ext.poly_features

    def wrong(x, degree=2, scales=None):
        out = right(x, degree, scales)
        return out.detach() + 1.01 * (out - out.detach())

    plant(monkeypatch, "poly_features", wrong)
    outcome = gate.run_registry("poly_features", CPU)
    assert "grad x" in outcome.failed[0] and " out " not in outcome.failed[0]


def test_crash_is_a_wrong_operator(monkeypatch) -> None:
    def crash(*args, **options):
        raise RuntimeError("poly_features: broken")

    plant(monkeypatch, "poly_features", crash)
    outcome = gate.run_registry("poly_features", CPU)
    assert len(outcome.failed) == outcome.cases
    assert "RuntimeError: poly_features: broken" in outcome.failed[0]


def test_wrong_case_gets_no_ratio(capsys, monkeypatch, without_inductor) -> None:
    """The registry is content, the benchmark's own shape is not."""
    right = atlas_ext.poly_features
    monkeypatch.setattr(atlas_ext, "poly_features", lambda x, degree: 1.001 * right(x, degree))
    assert run.main(QUICK) == 1
    out = capsys.readouterr().out
    assert re.search(r"rows 1024, float32: REFUSED: relative errors", out)
    assert "ratio" not in out and "eager" not in out


def test_crashing_case_does_not_end_the_run(capsys, monkeypatch, without_inductor) -> None:
    def crash(*_):
        raise MemoryError("too much")

    monkeypatch.setattr(run, "measure", crash)
    assert run.main(QUICK) == 1
    assert "REFUSED: failed: MemoryError: too much" in capsys.readouterr().out


def test_run_writes_what_it_was_asked_for(capsys, tmp_path, without_inductor) -> None:
    paths = {name: tmp_path / name for name in ("x.json", "plots", "page.md")}
    arguments = [*QUICK, "--json", str(paths["x.json"]), "--plot", str(paths["plots"])]
    assert run.main([*arguments, "--page", str(paths["page.md"])]) == 0
    out, found = capsys.readouterr().out, json.loads(paths["x.json"].read_text())
    assert [line["direction"] for line in found["runs"]] == list(DIRECTIONS)
    assert {rival["name"] for rival in found["runs"][0]["rivals"]} == {
        "eager, gather", "torch.compile", "memcpy",
    }  # fmt: skip
    assert all(rival["ratio"] > 0 for rival in found["runs"][0]["rivals"])
    names = [f"cpu-poly_features-float32-{what}.png" for what in ("memory", "time")]
    assert sorted(path.name for path in paths["plots"].iterdir()) == names
    assert all(f"page/{name}" in paths["page.md"].read_text() for name in names)
    assert "9 cases right" in out and "eager, gather" in out


def test_part_of_a_page_is_renewed(tmp_path, monkeypatch, without_inductor) -> None:
    monkeypatch.setattr(run, "measure", lambda case, direction, *_: line(case.op))
    path = tmp_path / "page.md"
    for op in ("poly_features", "newton_schulz", "poly_features"):
        assert run.main(["--op", op, *QUICK[2:], "--page", str(path)]) == 0
    titles = re.findall(r"^## (.*)$", path.read_text(), re.MULTILINE)
    assert titles == ["newton_schulz, cpu", "poly_features, cpu"]
    assert "Not measured yet on cpu: omega_rule, omega_rule_update," in path.read_text()


def test_stored_page_is_that_of_its_results() -> None:
    folder = ROOT / "docs" / "benchmarks"
    parts = page.stored(folder)
    assert (ROOT / "docs" / "benchmarks.md").read_text() == page.render(parts, folder.name)
    for name, found in parts.items():
        assert not found["refused"] and not any(entry["failed"] for entry in found["gates"])
        for dtype in {line["dtype"] for line in found["runs"]}:
            for what in plots.MEASURES:
                assert (folder / f"{name}-{dtype}-{what}.png").exists()


def test_options() -> None:
    options = run.parse(["--device", "cuda"])
    assert options.dtype == setting.DEFAULT_DTYPES["cuda"] and options.op == run.cases.OPS
    with pytest.raises(SystemExit):
        run.parse(["--dtype", "tf32"])
    with pytest.raises(SystemExit):
        run.parse(["--rounds", "2"])
    again = run.parse(run.command_of(run.parse(["--op", "omega_rule", "--rounds", "7"])))
    assert (list(again.op), again.rounds) == (["omega_rule"], 7)


def test_base_revision_is_measured_the_same_way(capsys, monkeypatch, without_inductor) -> None:
    asked = []

    def earlier(rev, arguments):
        asked.append((rev, list(arguments)))
        return {"runs": [line("poly_features")]}

    monkeypatch.setattr(revision, "measure", earlier)
    assert run.main([*QUICK, "--base", "HEAD~3"]) == 0
    assert asked[0][0] == "HEAD~3" and asked[0][1][2:4] == ["--op", "poly_features"]
    assert "Against HEAD~3:" in capsys.readouterr().out


def test_package_of_a_revision_is_what_setup_needs() -> None:
    listed = revision._git("ls-tree", "--name-only", "HEAD", *revision.PACKAGE).split()
    assert sorted(listed) == sorted(revision.PACKAGE)


class Ticks(Cpu):
    """A clock that shows what it was told to, and no memory."""

    def __init__(self, **seconds: float) -> None:
        self._seconds, self._next = list(seconds.values()), 0

    def seconds(self, call) -> float:
        call()
        self._next += 1
        return self._seconds[(self._next - 1) % len(self._seconds)]

    def peak_mib(self, call) -> float:
        return 1.0


def small_case(op: str = "newton_schulz"):
    return cases("cpu", [op], ["small"])[0]


def measured(monkeypatch, *rivals: Rival, rounds: int = 15, busy: float = 0.0, **seconds: float):
    monkeypatch.setattr(measure.Neighbours, "share", lambda self: busy)
    case = small_case()
    monkeypatch.setattr(type(case), "target", lambda *_: 2.0)
    object.__setattr__(case, "rivals", rivals)
    return measure.measure(case, "forward", CPU, Ticks(**seconds), rounds, BOUNDS)


COPY = Rival("copy", lambda inputs: inputs["x"].clone())


def test_verdict_needs_rounds_and_quiet(monkeypatch) -> None:
    for rounds, busy, ratio, met in ((15, 0.0, 3.0, True), (15, 0.0, 1.5, False),
                                     (14, 0.0, 3.0, None), (15, 0.2, 3.0, None)):  # fmt: skip
        found = measured(monkeypatch, COPY, rounds=rounds, busy=busy, theirs=ratio * 1e-3, us=1e-3)
        assert found["rivals"][0]["ratio"] == pytest.approx(ratio)
        assert found["rivals"][0]["met"] is met


def test_rates_are_counted_work_over_time(monkeypatch) -> None:
    found = measured(monkeypatch, COPY, theirs=2e-3, us=1e-3)
    flops = 64 * 5 * 6 * 64**3
    assert found["flops_per_second"] == pytest.approx(flops / 1e-3)
    assert found["share"] == pytest.approx(flops / 1e-3 / BOUNDS["mm float32"])
    case = small_case("poly_features")
    moved = 4 * 1024 * (64 + 2145)
    assert case.moved("forward", CPU) == moved
    assert case.moved("forward+backward", CPU) == 4 * 1024 * (3 * 64 + 2 * 2145)
    rates = measure.rates(case, "forward", CPU, 1e-3, BOUNDS)
    assert rates["share"] == pytest.approx(moved / 1e-3 / BOUNDS["copy"])


def test_failing_and_absent_rivals_are_named(monkeypatch) -> None:
    def fails(inputs):
        raise ValueError("no\nsuch kernel")

    rivals = (Rival("broken", fails), Rival("gone", absent="gone is not installed"), COPY)
    found = measured(monkeypatch, *rivals, theirs=2e-3, us=1e-3)
    text = report.family_table([found]) + "; ".join(report.absences([found]))
    assert "broken: failed: ValueError: no such kernel" in text
    assert "gone: gone is not installed" in text and "copy" in text


def line(op: str, length: int = 64, seconds: float = 1e-3) -> dict:
    case = small_case(op)
    record = measure.record_of(case, "forward", CPU)
    rival = measure.against([2 * seconds] * 3, [seconds] * 3, 1.5, True)
    rival |= {"name": case.rivals[0].name, "target": 1.5, "peak_mib": 2.0}
    return record | {
        "clock": "processor", "length": length, "seconds": seconds, "rounds": 15,
        "neighbours": 0.2, "peak_mib": 1.0,
        "rivals": [rival], "flops_per_second": 1e9, "of": "mm float32", "share": 0.25,
    }  # fmt: skip


def test_tables_show_ratio_memory_and_slope() -> None:
    family = [line("newton_schulz", 64, 1e-3), line("newton_schulz", 256, 16e-3)]
    table = report.family_table(family).splitlines()
    assert "1 †" in table[2] and "2 ms; 2.00 [2.00, 2.00]; 2.0 MiB" in table[2]
    assert "25% mm float32" in table[2]
    assert report.slopes(family) == "ours 2.00 forward; eager 2.00 forward"
    assert report.slope([(64, 1.0)]) is None
    assert "| met " in report.targets({"runs": family})


def test_busy_wall_clock_gives_no_ratio() -> None:
    run = line("newton_schulz") | {"clock": "wall"}
    assert "2 ms; no ratio; 2.0 MiB" in report.family_table([run])
    assert report.targets({"runs": [run]}) == ""
    assert "2.00" not in report.comparison({"runs": [run]}, {"runs": [run]})
    assert "2.00 [2.00, 2.00]" in report.family_table([run | {"neighbours": 0.0}])


def test_clock_of_one_thread_stands_still_while_others_run(threads) -> None:
    torch.set_num_threads(1)
    assert Cpu().clock == "processor" and Cpu().seconds(lambda: time.sleep(0.2)) < 0.1
    torch.set_num_threads(2)
    assert Cpu().clock == "wall" and Cpu().seconds(lambda: time.sleep(0.2)) >= 0.2


def test_comparison_is_of_ratios_to_the_same_rival() -> None:
    then, now = line("newton_schulz", seconds=4e-3), line("newton_schulz", seconds=1e-3)
    then["rivals"][0]["ratio"] = 0.5
    row = report.comparison({"runs": [now]}, {"runs": [then]}).splitlines()[2].split("|")
    assert [cell.strip() for cell in row[-5:-1]] == ["eager", "0.50", "2.00", "4.00"]


def test_memory_of_a_call_is_measured() -> None:
    kept = []
    # 40 MiB, touched; blocks of more than 32 MiB go back to the system at once: a peak, not a rest
    found = Cpu().peak_mib(lambda: kept.append(torch.ones(40 << 18)) or kept.clear())
    assert 39 < found < 44


def test_says_that_there_is_no_device(capsys, tmp_path) -> None:
    reason = setting.unavailable("cuda")
    if reason is None:
        assert Setting("cuda", "float32").missing("poly_features") is None
        return
    assert run.main(["--device", "cuda", "--json", str(tmp_path / "x.json")]) == 1
    assert reason in capsys.readouterr().err and "nothing was measured" in reason
    assert not list(tmp_path.iterdir())


def emulated() -> bool:
    return setting.unavailable("emulated") is None


@pytest.mark.skipif(not emulated(), reason="no emulated library")
def test_emulated_kernels_are_checked_and_not_timed(capsys, tmp_path) -> None:
    path = tmp_path / "x.json"
    assert run.main(["--device", "emulated", "--op", "newton_schulz", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert not found["runs"] and {entry["dtype"] for entry in found["gates"]} == {
        "float32", "bfloat16",
    }  # fmt: skip
    assert "batch 3, bfloat16: right" in capsys.readouterr().out


@pytest.mark.skipif(not emulated(), reason="no emulated library")
def test_operator_without_cuda_kernel_has_a_line(capsys, monkeypatch) -> None:
    monkeypatch.setattr(testing, "has_emulated_kernel", lambda name: False)
    assert run.main(["--device", "emulated", "--op", "exp_omega_rule"]) == 0
    assert "exp_omega_rule: no CUDA kernel in this version" in capsys.readouterr().out
