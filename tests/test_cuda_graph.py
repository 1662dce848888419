"""The operators under a CUDA graph, as the emulated backend captures one: what the host does is
done once, on memory that holds nothing yet, and launches run again on other values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import atlas_ext
from atlas_ext import testing
from atlas_ext.testing import Case, Inputs, emulated, map_tensors, named_tensors

pytestmark = pytest.mark.usefixtures("emulator")
UPDATES = [case for case in testing.CASES if case.in_place]
# Strided inputs of these two are copied by torch, which the emulated graph does not repeat.
COPIED = [
    case for case in testing.CASES if case.op in ("poly_features", "newton_schulz") and case.layout
]
CASES = [case for case in testing.CASES if case not in (*UPDATES, *COPIED)]
# Nor does it repeat torch's sums after the launches: those of M_0 and the scales over sequences,
# where blocks share a sequence (on 108 multiprocessors) those of k and v, and those of slices of V.
SHARED = [case for case in CASES if case.op == "omega_rule" and case.name != "slices"]
GRADIENTS = {
    1: ("x", "q", "k", "v", "gamma", "eta", "log_alpha", "log_theta"),
    108: ("q", "gamma", "eta", "log_alpha", "log_theta"),
}
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def pretend_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python asks CUDA whether it captures, and then gives states room without reading lengths; in
    the calls that are compared, too, so that shapes agree."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)


def span(tensor: Tensor) -> Tensor:
    """All that lies between a tensor's first and last element, flat."""
    size = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().as_strided((size if tensor.numel() else 0,), (1,))


def unwritten(_: str, tensor: Tensor) -> Tensor:
    """Memory of the tensor's shape and strides with no value that anything could go by."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    span(empty).fill_(torch.nan if tensor.is_floating_point() else -1)
    return empty


def fill(memory: Any, values: Any) -> None:
    given = named_tensors(values)
    for name, tensor in named_tensors(memory).items():
        span(tensor).copy_(span(given[name]))


def check(actual: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert actual.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.equal(actual[name], tensor), name


@each_dtype
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@torch.no_grad()
def test_forward(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_capture(monkeypatch)
    texts = [case.inputs(dtype, seed=seed) for seed in (0, 1)]
    with emulated() as backend:
        memory: Inputs = map_tensors(unwritten, texts[0])
        with backend.Graph() as graph:
            outputs = case.run(memory)
        for text in texts:
            fill(memory, text)
            graph.replay()
            backend.reset_counters()
            check(outputs, case.run(text))
            assert backend.counters()["launches"] == graph.launches


@each_dtype
@pytest.mark.parametrize("case", UPDATES, ids=lambda case: case.id)
@torch.no_grad()
def test_update(case: Case, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three replays: a token each, the state moving on in place."""
    texts = [case.inputs(dtype, seed=seed) for seed in range(3)]
    operator = getattr(atlas_ext, case.op)
    with emulated() as backend:
        memory: Inputs = map_tensors(unwritten, texts[0])
        state = map_tensors(lambda _, tensor: tensor.clone(), texts[0]["state"])
        if case.op == "exp_omega_rule_update":
            for held in (memory["state"], state):
                held.reserve(len(texts))
        pretend_capture(monkeypatch)
        with backend.Graph() as graph:
            output = operator(**memory, **case.options)
        fill(memory["state"], state)
        for text in texts:
            fill({**memory, "state": ()}, text)
            graph.replay()
            wanted = operator(**{**text, "state": state}, **case.options)
            found = {"o": output, "state": memory["state"]}
            check(named_tensors(found), named_tensors({"o": wanted, "state": state}))


@each_dtype
@pytest.mark.parametrize(
    ("case", "multiprocessors"),
    [*((case, 1) for case in CASES), *((case, 108) for case in SHARED)],
    ids=lambda value: value.id if isinstance(value, Case) else str(value),
)
def test_backward(
    case: Case, multiprocessors: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the gradients that the launches themselves write."""
    pretend_capture(monkeypatch)
    texts = [case.inputs(dtype, seed=seed) for seed in (0, 1)]
    names = [name for name in case.differentiable(texts[0]) if name in GRADIENTS[multiprocessors]]

    def run(inputs: Inputs) -> dict[str, Tensor]:
        leaves = testing.require_grad(inputs, names)
        outputs = case.run(leaves)
        return testing.gradients(outputs, leaves, names, testing.cotangents(outputs))

    with emulated() as backend:
        backend.set_device(80, multiprocessors=multiprocessors)
        memory: Inputs = map_tensors(unwritten, texts[0])
        with backend.Graph() as graph:
            grads = run(memory)
        for text in texts:
            fill(memory, text)
            graph.replay()
            check(grads, run(text))
