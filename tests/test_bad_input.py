"""Every argument of every operator malformed in turn: the error names op, argument, wanted, got."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import atlas_ext
from atlas_ext.testing import map_tensors, omega_state, omega_tensors

Change = Callable[[dict[str, Any]], dict[str, Any]]
# B = 2, T = 5, H = 2, K = 4, V = 3, W = 3 unless a row says otherwise; M = N = 3 for the update.
SIZES = {"H": 2, "K": 4, "V": 3, "W": 3}


def base(op: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    if op == "poly_features":
        inputs: dict[str, Any] = {"x": torch.randn(3, 4), "degree": 2, "scales": torch.ones(3)}
    elif op == "newton_schulz":
        inputs = {"x": torch.randn(2, 3, 4), "steps": 5, "schedule": torch.ones(5, 3)}
    elif op == "omega_rule":
        inputs = omega_tensors(generator, (2, 5), theta=True, **SIZES)
        inputs["weights"] = (torch.randn(2, 3, 4),)
    else:
        inputs = omega_tensors(generator, (3,), theta=True, **SIZES)
        inputs["state"] = omega_state(generator, (1, 2, 3), momentum=True, **SIZES)
        inputs["state_indices"] = torch.tensor([2, 0, 1])
    return map_tensors(lambda _, t: t.float() if t.is_floating_point() else t, inputs)


def with_state(inputs: dict[str, Any], memory: str = "linear") -> dict[str, Any]:
    """The Omega rule going on from a state."""
    shape = {**SIZES, "F": 8, "memory": memory}
    state = omega_state(torch.Generator().manual_seed(1), (2, 5), momentum=True, **shape)
    state = map_tensors(lambda _, t: t.float() if t.is_floating_point() else t, state)
    return {**{k: v for k, v in inputs.items() if k != "weights"}, "initial_state": state}


def packed(inputs: dict[str, Any], *ends: int, dtype: torch.dtype = torch.int32) -> dict[str, Any]:
    """One batch row, with these ends of its sequences."""
    first = {k: v if k == "weights" else v[:1] for k, v in inputs.items()}
    return {**first, "cu_seqlens": torch.tensor(ends, dtype=dtype)}


def put(**values: Any) -> Change:
    return lambda inputs: {**inputs, **values}


def alter(name: str, function: Callable[[Tensor], Any]) -> Change:
    return lambda inputs: {**inputs, name: function(inputs[name])}


def alter_state(key: str, name: str, function: Callable[[Any], Any]) -> Change:
    def change(inputs: dict[str, Any]) -> dict[str, Any]:
        state = inputs[key] if key in inputs else (inputs := with_state(inputs))[key]
        return {**inputs, key: state._replace(**{name: function(getattr(state, name))})}

    return change


# op, argument in the error's text, what came (in the text as well), the change that makes it bad
Row = tuple[str, str, str, Change]


def tensor_rows(op: str, name: str, shape: list[int], index: int | None = None) -> list[Row]:
    """What is wrong with any tensor: rank, leading size, dtypes, device."""

    def change(function: Callable[[Tensor], Tensor]) -> Change:
        if index is None:
            return alter(name, function)
        return alter(name, lambda items: (function(items[0]),))

    grown = str([shape[0] + 1, *shape[1:]])[1:]  # weights may be shown with N in front
    return [
        (op, name, str([1, *shape]), change(lambda t: t.unsqueeze(0))),
        (op, name, grown, change(lambda t: torch.cat([t, t[:1]]))),
        (op, name, "int64", change(lambda t: t.long())),
        (op, name, "complex64", change(lambda t: t.to(torch.complex64))),
        (op, name, "", change(lambda t: t.to("meta"))),
    ]


def small_op_rows() -> list[Row]:
    poly, schulz = "poly_features", "newton_schulz"
    return [
        (poly, "x", "[]", put(x=torch.tensor(1.0))),
        (poly, "x", "[3, 0]", put(x=torch.empty(3, 0))),
        (poly, "x", "int64", put(x=torch.ones(3, 4, dtype=torch.int64))),
        (poly, "x", "complex64", put(x=torch.ones(3, 4, dtype=torch.complex64))),
        (poly, "x", "bool", put(x=torch.ones(3, 4, dtype=torch.bool))),
        *[(poly, "degree", str(degree), put(degree=degree)) for degree in (-1, 0, 5)],
        (poly, "degree", "str", put(degree="str")),
        (poly, "scales", "[2]", put(scales=torch.ones(2))),
        (poly, "scales", "[3, 1]", put(scales=torch.ones(3, 1))),
        (poly, "scales", "int64", put(scales=torch.ones(3, dtype=torch.int64))),
        (poly, "scales", "bfloat16", put(scales=torch.ones(3, dtype=torch.bfloat16))),
        (poly, "scales", "", put(scales=torch.ones(3, device="meta"))),
        (schulz, "x", "[4]", put(x=torch.ones(4))),
        (schulz, "x", "[2, 0, 4]", put(x=torch.empty(2, 0, 4))),
        (schulz, "x", "[2, 4, 0]", put(x=torch.empty(2, 4, 0))),
        (schulz, "x", "int64", put(x=torch.ones(3, 4, dtype=torch.int64))),
        (schulz, "x", "complex64", put(x=torch.ones(3, 4, dtype=torch.complex64))),
        (schulz, "steps", "-1", put(steps=-1, schedule="muon")),
        (schulz, "steps", "str", put(steps="str", schedule="muon")),
        (schulz, "schedule", "moun", put(schedule="moun")),
        (schulz, "schedule", "[4, 3]", put(schedule=torch.ones(4, 3))),
        (schulz, "schedule", "[5, 2]", put(schedule=torch.ones(5, 2))),
        (schulz, "schedule", "[15]", put(schedule=torch.ones(15))),
        (schulz, "schedule", "int64", put(schedule=torch.ones(5, 3, dtype=torch.int64))),
        (schulz, "schedule|table", "meta", put(schedule=torch.ones(5, 3, device="meta"))),
        (schulz, "scale", "frobenius", put(scale="frobenius")),
        (schulz, "eps", "-1", put(eps=-1.0)),
        (schulz, "eps", "nan", put(eps=float("nan"))),
    ]


def shared_rows(op: str) -> list[Row]:
    """Arguments that the Omega rule and its update have in common."""
    lead = [3] if op.endswith("update") else [2, 5]
    rows = [
        *tensor_rows(op, "gamma", [*lead, 2, 3]),
        *tensor_rows(op, "eta", [*lead, 2]),
        *tensor_rows(op, "log_alpha", [*lead, 2]),
        *tensor_rows(op, "log_theta", [*lead, 2]),
    ]
    for name, width in (("k", 4), ("v", 3)):
        rows += tensor_rows(op, name, [*lead, 2, width])
        rows.append((op, name, "bfloat16", alter(name, Tensor.bfloat16)))
    three_heads = str([*lead, 3, 4])
    return [
        *rows,
        (op, "q", str([1, *lead, 2, 4]), alter("q", lambda t: t.unsqueeze(0))),
        (op, "q", "int64", alter("q", Tensor.long)),
        (op, "q", "complex64", alter("q", lambda t: t.to(torch.complex64))),
        (op, "k", str([*lead, 2, 3]), alter("k", lambda t: t[..., :3])),
        (op, "k", three_heads, alter("k", lambda t: torch.cat([t, t[..., :1, :]], -2))),
        (op, "v", str([*lead, 2, 0]), alter("v", lambda t: t[..., :0])),
        (op, "gamma", str([*lead, 2, 0]), alter("gamma", lambda t: t[..., :0])),
        (op, "eta", "bfloat16", alter("eta", Tensor.bfloat16)),
        (op, "gamma", "float64", alter("gamma", Tensor.double)),
        (op, "objective", "l1", put(objective="l1")),
        (op, "activation", "relu", put(activation="relu")),
        *[(op, "degree", str(degree), put(degree=degree)) for degree in (-1, 0, 5)],
        (op, "feature_scales", "[3]", put(feature_scales=torch.ones(3))),
        (op, "feature_scales", "[2]", put(degree=2, feature_scales=torch.ones(2))),
        (op, "feature_scales", "int64", put(degree=2, feature_scales=torch.ones(3).long())),
        (op, "ns_steps", "-1", put(ns_steps=-1)),
        (op, "ns_steps", "str", put(ns_steps="str")),
        (op, "ns_schedule", "moun", put(ns_steps=5, ns_schedule="moun")),
        (op, "ns_schedule", "[4, 3]", put(ns_steps=5, ns_schedule=torch.ones(4, 3))),
        (op, "ns_scale", "frobenius", put(ns_steps=5, ns_scale="frobenius")),
        (op, "ns_every", "0", put(ns_steps=5, ns_every=0)),
        (op, "chunk_size", "0", put(chunk_size=0)),
        (op, "chunk_size", "str", put(chunk_size="str")),
        (op, "residual", "", put(residual=True)),
    ]


def state_rows(op: str, key: str, count: int) -> list[Row]:
    """A state of another shape, kind or dtype; ``count`` sequences."""

    def first(function: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
        return lambda matrices: (function(matrices[0]),)

    rows: list[Row] = []
    for name in ("weights", "momentum", "chunk_weights"):
        bad = [
            (str([count, 2, 3, 3]), lambda t: t[..., :3]),
            (str([count, 2, 2, 4]), lambda t: t[..., :2, :]),
            (str([2, 3, 4]), lambda t: t[0]),
            ("int64", Tensor.long),
            ("bfloat16", Tensor.bfloat16),
            ("", lambda t: t.to("meta")),
        ]
        rows += [(op, name, got, alter_state(key, name, first(change))) for got, change in bad]
        rows.append((op, name, "", alter_state(key, name, lambda _: ())))
    for name, width in (("k_tail", 4), ("v_tail", 3)):
        bad = [
            (str([count, 1, 2, width]), lambda t: t[:, :1]),
            (str([count, 2, 2, width - 1]), lambda t: t[..., 1:]),
            ("int64", Tensor.long),
            ("", lambda t: t.to("meta")),
        ]
        rows += [(op, name, got, alter_state(key, name, change)) for got, change in bad]
    return [
        *rows,
        (op, "position", "int32", alter_state(key, "position", Tensor.int)),
        (op, "position|weights", "", alter_state(key, "position", lambda t: t[:1])),
        (op, "position", "", alter_state(key, "position", lambda t: t.to("meta"))),
    ]


def deep_rows() -> list[Row]:
    """Memories of two and three matrices: F = 8."""
    op = "omega_rule"
    first, last = torch.randn(2, 8, 4), torch.randn(2, 3, 8)
    third = torch.randn(2, 8, 3)
    rows: list[tuple[str, str, tuple[Tensor, ...]]] = [
        ("weights.1", "3, 7]", (first, torch.randn(2, 3, 7))),
        ("weights.1", "4, 8]", (first, torch.randn(2, 4, 8))),
        ("weights.0", "8, 3]", (third, last)),
        ("weights.1", "[2, 3, 3, 8]", (first, torch.randn(3, 3, 8))),
        ("weights.1", "[3, 2, 3, 8]", (first, torch.randn(3, 2, 3, 8))),
        ("weights.0", "[8, 4]", (first[0], last)),
        ("weights.1", "[3, 8]", (first, last[0])),
        ("weights.0", "0, 4]", (torch.empty(2, 0, 4), torch.empty(2, 3, 0))),
        ("weights.0", "3, 8]", (last, first)),
        ("weights.1", "float64", (first, last.double())),
        ("weights.1", "int64", (first, last.long())),
        ("weights.0", "complex64", (first.to(torch.complex64), last)),
        ("weights", "meta", (first, last.to("meta"))),
        ("weights.1", "7, 4]", (first, torch.randn(2, 7, 4), last)),
        ("weights.1", "8, 3]", (first, third, last)),
        ("weights.2", "3, 7]", (first, first, torch.randn(2, 3, 7))),
        ("weights.2", "8, 4]", (first, first, first)),
        ("weights.2", "bfloat16", (first, first, last.bfloat16())),
        ("weights", "4 matrices", (first, first, first, last)),
    ]
    return [
        *[(op, argument, got, put(weights=weights)) for argument, got, weights in rows],
        (op, "weights.0", "8, 4]", put(weights=(first, last), degree=2)),
        (op, "residual", "", put(weights=(first, last), residual=True)),
    ]


def deep_state_rows(op: str, key: str) -> list[Row]:
    def change(memory: str, name: str, function: Callable[[Any], Any]) -> Change:
        def apply(inputs: dict[str, Any]) -> dict[str, Any]:
            state = (with_state(inputs, memory) if key == "initial_state" else slots(3, memory))[
                key
            ]
            rest = {k: v for k, v in inputs.items() if k != "weights"}
            return {**rest, key: state._replace(**{name: function(getattr(state, name))})}

        return apply

    def at(index: int, function: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
        return lambda items: (*items[:index], function(items[index]), *items[index + 1 :])

    rows: list[Row] = []
    for name in ("weights", "momentum", "chunk_weights"):
        rows += [
            (op, f"{name}.1", "3, 7]", change("mlp", name, at(1, lambda t: t[..., :7]))),
            (op, f"{name}.1", "2, 8]", change("mlp", name, at(1, lambda t: t[..., :2, :]))),
            (op, f"{name}.0", "8, 3]", change("mlp", name, at(0, lambda t: t[..., :3]))),
            (op, f"{name}.1", "7, 4]", change("gated_mlp", name, at(1, lambda t: t[..., :7, :]))),
            (op, f"{name}.2", "[2, 3, 8]", change("gated_mlp", name, at(2, lambda t: t[0]))),
            (op, f"{name}.2", "bfloat16", change("gated_mlp", name, at(2, Tensor.bfloat16))),
            (op, f"{name}.1", "int64", change("mlp", name, at(1, Tensor.long))),
            (op, name, "meta", change("gated_mlp", name, at(2, lambda t: t.to("meta")))),
        ]
    return [
        *rows,
        (op, "momentum", "1", change("mlp", "momentum", lambda items: items[:1])),
        (op, "momentum", "3", change("mlp", "momentum", lambda items: (items[0], *items))),
        (op, "chunk_weights", "2", change("gated_mlp", "chunk_weights", lambda items: items[1:])),
        (op, "chunk_weights", "2", change("mlp", "weights", lambda items: items[1:])),
    ]


def omega_rows() -> list[Row]:
    op = "omega_rule"
    return [
        *shared_rows(op),
        *tensor_rows(op, "weights", [2, 3, 4], index=0)[1:],
        *state_rows(op, "initial_state", 2),
        *deep_rows(),
        *deep_state_rows(op, "initial_state"),
        (op, "weights", "3, 3]", put(weights=(torch.randn(2, 3, 3),))),
        (op, "weights", "4, 4]", put(weights=(torch.randn(2, 4, 4),))),
        (op, "weights", "[3, 2, 3, 4]", put(weights=(torch.randn(3, 2, 3, 4),))),
        (op, "weights", "[3, 15]", put(weights=(torch.randn(3, 15),), degree=2)),
        (op, "weights", "3, 4]", put(degree=2)),
        (op, "weights", "float64", put(weights=(torch.randn(2, 3, 4).double(),))),
        (op, "weights", "Tensor", put(weights=torch.randn(2, 3, 4))),  # the comma forgotten
        (op, "initial_state", "tuple", put(weights=None, initial_state=(torch.randn(2, 3, 4),))),
        (op, "weights", "0", put(weights=())),
        (op, "weights", "4", put(weights=4 * (torch.randn(2, 3, 4),))),
        (op, "weights", "neither", put(weights=None)),
        (op, "cu_seqlens", "1", lambda i: packed(i, 1, 5)),
        (op, "cu_seqlens", "4", lambda i: packed(i, 0, 4)),
        (op, "cu_seqlens", "6", lambda i: packed(i, 0, 6)),
        (op, "cu_seqlens", "", lambda i: packed(i, 0, 4, 3, 5)),
        (op, "cu_seqlens", "float32", lambda i: packed(i, 0, 5, dtype=torch.float32)),
        (op, "cu_seqlens", "int16", lambda i: packed(i, 0, 5, dtype=torch.int16)),
        (op, "cu_seqlens", "", lambda i: packed(i)),
        (op, "cu_seqlens", "", lambda i: {**packed(i), "cu_seqlens": torch.tensor([[0, 5]])}),
        (op, "cu_seqlens|q", "2", put(cu_seqlens=torch.tensor([0, 5]))),
    ]


def update_rows() -> list[Row]:
    op = "omega_rule_update"
    indices = [
        ("[2]", torch.tensor([0, 1])),
        ("[1, 3]", torch.tensor([[0, 1, 2]])),
        ("float32", torch.tensor([0.0, 1.0, 2.0])),
        ("3", torch.tensor([0, 1, 3])),
        ("-1", torch.tensor([0, 1, -1])),
        ("1", torch.tensor([0, 1, 1])),
    ]
    return [
        *shared_rows(op),
        *state_rows(op, "state", 3),
        *deep_state_rows(op, "state"),
        *[(op, "state_indices", got, put(state_indices=value)) for got, value in indices],
        (op, "momentum|log_theta", "", alter_state("state", "momentum", lambda _: None)),
        (op, "momentum|log_theta", "", put(log_theta=None)),
        (op, "state", "", put(state=None)),
        (
            op,
            "state_indices|state|q",
            "[3, 2, 4]",
            lambda i: {**i, **slots(5), "state_indices": None},
        ),
    ]


def slots(count: int, memory: str = "linear") -> dict[str, Any]:
    shape = {**SIZES, "F": 8, "memory": memory}
    state = omega_state(torch.Generator(), range(count), momentum=True, **shape)
    return {"state": map_tensors(lambda _, t: t.float() if t.is_floating_point() else t, state)}


ROWS = [*small_op_rows(), *omega_rows(), *update_rows()]


@pytest.mark.parametrize(
    "op", ["poly_features", "newton_schulz", "omega_rule", "omega_rule_update"]
)
def test_the_base_is_good(op: str) -> None:
    getattr(atlas_ext, op)(**base(op))
    if op == "omega_rule_update":
        for memory in ("mlp", "gated_mlp"):
            atlas_ext.omega_rule_update(**{**base(op), **slots(3, memory)})
    if op == "omega_rule":
        atlas_ext.omega_rule(**with_state(base(op)))
        atlas_ext.omega_rule(**packed(base(op), 0, 2, 5))
        for memory in ("mlp", "gated_mlp"):
            atlas_ext.omega_rule(**with_state(base(op), memory))


@pytest.mark.parametrize("inference", [False, True], ids=["", "inference_mode"])
@pytest.mark.parametrize(
    "op, argument, got, change", ROWS, ids=[f"{i}-{r[0]}-{r[1]}-{r[2]}" for i, r in enumerate(ROWS)]
)
def test_bad_input(op: str, argument: str, got: str, change: Change, inference: bool) -> None:
    inputs = change(base(op))
    with torch.inference_mode(inference), pytest.raises((ValueError, RuntimeError)) as caught:
        getattr(atlas_ext, op)(**inputs)
    text = str(caught.value)
    if got == "str" and "'str'" in text:  # refused by the schema, in the dispatcher's words
        assert op in text and argument in text
        return
    wording = rf"{op}: \S*({argument})\b.*: wanted .+, got (.*)"
    match = re.search(wording, text, flags=re.DOTALL)
    assert match, f"{text!r} does not follow 'op: argument: wanted ..., got ...'"
    assert got in match[2], f"{text!r} does not say that it got {got!r}"
