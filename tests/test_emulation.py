"""The emulated CUDA backend's Python side: namespaces, controls, traces (docs/emulation.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import atlas_ext
from atlas_ext import testing

OPERATORS = ("poly_features", "newton_schulz", "omega_rule", "omega_rule_update")


def needs_kernel(name: str) -> None:
    if not testing.has_emulated_kernel(name):
        pytest.skip(f"{name} has no CUDA kernel")


@pytest.mark.parametrize("name", [*OPERATORS, *(f"{n}_backward" for n in OPERATORS[:3])])
def test_both_namespaces_have_one_schema(backend: Any, name: str) -> None:
    native, emulated = (
        str(getattr(namespace, name).default._schema)
        for namespace in (torch.ops.atlas_ext, torch.ops.atlas_ext_emulated)
    )
    assert emulated == native.replace("atlas_ext::", "atlas_ext_emulated::")


def test_settings_hold_inside_and_come_back(backend: Any) -> None:
    before = backend.settings()
    with testing.emulated(order="random", seed=7, cp_async="late", capability=90) as inner:
        assert inner.settings() == {
            "order": "random",
            "seed": 7,
            "cp_async": "late",
            "capability": 90,
            "multiprocessors": 108,
            "shared_kib": 227,
        }
    assert backend.settings() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "sideways"}, "order: wanted forward, reverse or random, got sideways"),
        ({"cp_async": "never"}, "cp_async: wanted early, late or random, got never"),
        ({"capability": 70}, "capability: wanted 75, 80, .*, got 70"),
    ],
)
def test_bad_settings_are_refused(backend: Any, options: dict[str, Any], message: str) -> None:
    before = backend.settings()
    with pytest.raises(RuntimeError, match=message), testing.emulated(**options):
        pass
    assert backend.settings() == before


def test_public_functions_are_native_outside(backend: Any) -> None:
    needs_kernel("poly_features")
    x = torch.randn(3, 4)
    launches = backend.counters()["launches"]
    emulated = atlas_ext.poly_features(x)
    assert backend.counters()["launches"] > launches
    torch.testing.assert_close(emulated, torch.ops.atlas_ext.poly_features(x, None, 2))


def test_backward_runs_where_the_forward_ran(backend: Any) -> None:
    needs_kernel("poly_features_backward")
    x = torch.randn(3, 4, requires_grad=True)
    with testing.emulated():
        output = atlas_ext.poly_features(x)
    launches = backend.counters()["launches"]
    output.sum().backward()
    assert backend.counters()["launches"] > launches


def test_compiles_to_one_graph(backend: Any) -> None:
    needs_kernel("poly_features")
    x = torch.randn(3, 4)
    compiled = torch.compile(atlas_ext.poly_features, fullgraph=True, backend="aot_eager")
    launches = backend.counters()["launches"]
    torch.testing.assert_close(compiled(x), atlas_ext.poly_features(x))
    assert backend.counters()["launches"] > launches + 1


def test_trace_records_launches(backend: Any, tmp_path: Path) -> None:
    needs_kernel("poly_features")
    backend.trace(tmp_path / "trace")
    try:
        output = atlas_ext.poly_features(torch.ones(3, 4))
    finally:
        backend.trace(None)
    lines = (tmp_path / "trace" / "trace.jsonl").read_text().splitlines()
    launch = json.loads(lines[0])
    assert launch["kernel"].startswith("_Z") and len(launch["params"]) > 0
    names = {buffer["name"]: buffer for buffer in launch["buffers"]}
    written = (tmp_path / "trace" / names["out"]["after"]).read_bytes()
    assert names["out"]["before"] is None and names["out"]["nbytes"] == 4 * output.numel()
    assert written == output.numpy().tobytes()


def test_a_graph_records_and_repeats(backend: Any) -> None:
    needs_kernel("poly_features")
    x = torch.full((3, 4), torch.nan)
    launches = backend.counters()["launches"]
    with backend.Graph() as graph:
        output = atlas_ext.poly_features(x)
    assert (graph.launches, backend.counters()["launches"]) == (1, launches)
    for value in (1.0, 2.0):
        x.fill_(value)
        graph.replay()
        assert torch.equal(output[:, 1:5], x)
    assert backend.counters()["launches"] == launches + 2


def test_graphs_do_not_nest(backend: Any) -> None:
    graph = backend.Graph()
    with graph:
        with pytest.raises(RuntimeError, match="capture: wanted none under way"):
            backend.Graph().__enter__()
        with pytest.raises(RuntimeError, match="replay: wanted no capture under way"):
            graph.replay()
    graph.replay()
    assert graph.launches == 0


def test_an_error_ends_a_capture_and_the_next_one_starts_afresh(backend: Any) -> None:
    needs_kernel("poly_features")
    graph = backend.Graph()
    with pytest.raises(ZeroDivisionError), graph:
        atlas_ext.poly_features(torch.ones(3, 4))
        raise ZeroDivisionError
    assert graph.launches == 1 and not atlas_ext.poly_features(torch.ones(3, 4)).isnan().any()
    with graph:
        pass
    assert graph.launches == 0
    backend.Graph().__enter__()  # a graph that is dropped does not record
    assert not atlas_ext.poly_features(torch.ones(3, 4)).isnan().any()


def test_a_replay_has_no_trace(backend: Any, tmp_path: Path) -> None:
    graph = backend.Graph()
    backend.trace(tmp_path / "trace")
    try:
        with pytest.raises(RuntimeError, match="replay: wanted no trace under way"):
            graph.replay()
    finally:
        backend.trace(None)
