"""The compiled exponential Omega rule: attention, the delta rule in kernel space, states."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas_ext import ExpOmegaState, exp_omega_rule, exp_omega_rule_update
from atlas_ext.ops.exp_omega_rule import _extra_rows as extra_rows
from atlas_ext.testing import (
    Inputs,
    map_tensors,
    memory_weights,
    named_tensors,
    normal,
    omega_tensors,
    relative_error,
)

MEMORIES = ("linear", "mlp", "gated_mlp")
NORMALIZATIONS = ("none", "softmax", "rms")
SIZES = {"H": 2, "K": 5, "V": 5, "W": 4}
EXACT = 1e-12  # float64


def make(tokens: int, *, batch: int = 2, seed: int = 0, **changes: Any) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return omega_tensors(generator, (batch, tokens), **(SIZES | {"theta": True} | changes))


def make_weights(memory: str) -> tuple[Tensor, ...] | None:
    generator = torch.Generator().manual_seed(3)
    if memory == "linear":
        return None
    return memory_weights(generator, 2, V=5, D=5, F=7, memory=memory)


def hebbian(tokens: int, **sizes: int) -> tuple[Tensor, ...]:
    """q, k, v and gates that store every value as it is: eta = gamma = 1, W = 1, no decay."""
    sizes = {"H": 2, "K": 17, "V": 19, "B": 2} | sizes
    generator = torch.Generator().manual_seed(0)
    lead = (sizes["B"], tokens, sizes["H"])
    q, k, v = (normal(generator, *lead, sizes[width]) for width in "KKV")
    return q, k, v, torch.ones(*lead, 1, dtype=q.dtype), torch.ones(lead, dtype=q.dtype)


def cut(inputs: Inputs, start: int | None, end: int | None) -> Inputs:
    return {name: tensor[:, start:end] for name, tensor in inputs.items()}


def assert_same(actual: Any, wanted: Any, tolerance: float = EXACT) -> None:
    found, expected = named_tensors({"": actual}), named_tensors({"": wanted})
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    assert max(errors.values(), default=0.0) <= tolerance, errors


@pytest.mark.parametrize("chunk_size", [1, 7, 64, 500])
def test_softmax_attention(chunk_size: int) -> None:
    q, k, v, *gates = (x.requires_grad_() for x in hebbian(150))
    o, _ = exp_omega_rule(q, k, v, *gates, normalize="softmax", chunk_size=chunk_size)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True
    ).transpose(1, 2)
    assert_same(o, expected)
    grad = torch.randn_like(o)
    assert_same(
        torch.autograd.grad(o, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad)
    )


def test_unnormalised_attention_is_the_direct_sum() -> None:
    q, k, v, *gates = hebbian(150)
    expected = torch.einsum(
        "bhti,bihv->bthv", (torch.einsum("bthd,bihd->bhti", q, k) * 0.3).exp().tril(), v
    )
    for chunk_size in (1, 16, 64):
        o, _ = exp_omega_rule(q, k, v, *gates, scale=0.3, chunk_size=chunk_size)
        assert_same(o, expected)
    o, _ = exp_omega_rule(q, k, v, *gates, scale=0.3, normalize="rms")
    assert_same(o, expected / (expected.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt())


def test_delta_rule_in_kernel_space_is_a_triangular_solve() -> None:
    """l2, W = C = 1, no decay: rows B with B_t = eta_t (v_t - sum_{j<t} B_j exp(scale k_j·k_t))."""
    inputs = make(40, W=1, theta=False, alpha=False)
    o, final = exp_omega_rule(
        **inputs, objective="l2", chunk_size=1, scale=0.7, output_final_state=True
    )
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    step = (inputs["eta"] * inputs["gamma"][..., 0]).transpose(1, 2).unsqueeze(-1)
    system = torch.eye(40, dtype=q.dtype) + step * (0.7 * k @ k.mT).exp().tril(-1)
    rows = torch.linalg.solve_triangular(system, step * v, upper=False)
    assert_same(o, ((0.7 * q @ k.mT).exp().tril() @ rows).transpose(1, 2), 1e-10)
    assert final is not None
    assert_same(final.coefficients[0], rows.transpose(1, 2), 1e-10)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_prefill_and_decode_at_every_split(memory: str, normalize: str) -> None:
    inputs, weights = make(9), make_weights(memory)
    options: dict[str, Any] = {"objective": "l2", "chunk_size": 4, "residual": True}
    options["normalize"] = normalize
    o, wanted = exp_omega_rule(**inputs, weights=weights, **options, output_final_state=True)
    for split in range(10):
        before, state = exp_omega_rule(
            **cut(inputs, 0, split), weights=weights, **options, output_final_state=True
        )
        assert state is not None
        copy = map_tensors(lambda _, tensor: tensor.clone(), state)
        after, final = exp_omega_rule(
            **cut(inputs, split, None), initial_state=state, **options, output_final_state=True
        )
        assert_same(torch.cat([before, after], dim=1), o)
        assert_same(final, wanted)
        assert_same(state, copy, 0.0)  # is left alone
        reads = [
            exp_omega_rule_update(
                **{name: tensor[:, t] for name, tensor in inputs.items()}, state=state, **options
            )
            for t in range(split, 9)
        ]
        if reads:
            assert_same(torch.stack(reads, dim=1), o[:, split:])
        shorter = map_tensors(
            lambda name, t: t[:, :9] if t.dim() == 4 and t.shape[1] > 9 else t, state
        )
        assert_same(shorter, wanted)
        assert state.length == 9


@pytest.mark.parametrize("memory", MEMORIES)
def test_packed_equals_separate(memory: str) -> None:
    lengths = (5, 0, 9)
    inputs, weights = make(sum(lengths), batch=1), make_weights(memory)
    options: dict[str, Any] = {"objective": "l2", "chunk_size": 4, "output_final_state": True}
    bounds = torch.tensor([0, 5, 5, 14])
    packed, state = exp_omega_rule(**inputs, weights=weights, cu_seqlens=bounds, **options)
    assert state is not None
    assert (state.length, state.capacity, state.position.tolist()) == (9, 9, list(lengths))
    for n, length in enumerate(lengths):
        part = cut(inputs, int(bounds[n]), int(bounds[n + 1]))
        o, alone = exp_omega_rule(**part, weights=weights, **options)
        assert alone is not None
        assert_same(packed[:, bounds[n] : bounds[n + 1]], o)
        assert_same(state.coefficients[0][n : n + 1, :length], alone.coefficients[0])
        assert not state.coefficients[0][n, length:].any()
        assert not state.keys[n, length:].any()


class OnDevice(Tensor):
    """A tensor that says it is on CUDA."""

    device = torch.device("cuda")


def test_bounds_are_read_where_they_have_values() -> None:
    q, bounds = make(14, batch=1)["q"], torch.tensor([0, 5, 5, 14])
    assert extra_rows(q, None, bounds.as_subclass(OnDevice)) == 9 - 14
    assert extra_rows(q, None, bounds.to("meta")) == 0  # T


def test_compiled_packed_state_has_room_for_all_tokens() -> None:
    torch._dynamo.reset()
    inputs, bounds = make(14, batch=1), torch.tensor([0, 5, 5, 14])
    options = {"cu_seqlens": bounds, "output_final_state": True, "chunk_size": 4}
    _, state = exp_omega_rule(**inputs, **options)
    compiled = torch.compile(exp_omega_rule, fullgraph=True, backend="aot_eager")
    _, roomy = compiled(**inputs, **options)
    assert state is not None
    assert (state.capacity, roomy.capacity, roomy.position.tolist()) == (9, 14, [5, 0, 9])
    assert_same(roomy.coefficients[0][:, :9], state.coefficients[0])
    assert not roomy.coefficients[0][:, 9:].any()


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("memory", MEMORIES)
def test_causality_is_bitwise(memory: str, normalize: str) -> None:
    inputs, other = make(21), make(21, seed=9)
    options: dict[str, Any] = {"weights": make_weights(memory), "objective": "l2"}
    options |= {"chunk_size": 8, "normalize": normalize}
    o, _ = exp_omega_rule(**inputs, **options)
    for t in range(1, 21):
        changed = {name: torch.cat([x[:, :t], other[name][:, t:]], 1) for name, x in inputs.items()}
        assert torch.equal(exp_omega_rule(**changed, **options)[0][:, :t], o[:, :t]), t


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_products_do_not_overflow_under_softmax(dtype: torch.dtype) -> None:
    """Products of many thousands: the read picks the keys that fit best, as attention does."""
    q, k, v, *gates = (x.to(dtype) for x in hebbian(100))
    leaves = [(300 * q).requires_grad_(), (300 * k).requires_grad_(), v.requires_grad_()]
    o, _ = exp_omega_rule(*leaves, *gates, normalize="softmax", chunk_size=16)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in leaves), is_causal=True
    ).transpose(1, 2)
    assert torch.isfinite(o).all()
    assert relative_error(o, expected) < (1e-3 if dtype == torch.float32 else 1e-9)
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(o.sum(), leaves))
    overflown, _ = exp_omega_rule(*leaves, *gates, chunk_size=16)
    assert not torch.isfinite(overflown).all()  # no finite number stands for what is too large


def test_far_below_the_maximum_is_nothing() -> None:
    """Keys whose kernel underflows against the best one add nothing, not a clamp's remainder."""
    q, k, v, *gates = (x.float() for x in hebbian(70, K=1, V=1, H=1, B=1))
    q, k, v = torch.ones_like(q), torch.full_like(k, -1e4), torch.full_like(v, 1e30)
    k[:, -1], v[:, -1] = 0.0, 2.0
    o, _ = exp_omega_rule(q, k, v, *gates, normalize="softmax", scale=1.0)
    assert o[0, -1].item() == 2.0


def test_rows_grow_and_positions_differ() -> None:
    inputs = make(12, batch=3)
    options: dict[str, Any] = {"objective": "l2", "chunk_size": 4}
    starts = (0, 3, 5)
    parts = [{name: x[n : n + 1] for name, x in inputs.items()} for n in range(3)]
    whole = [exp_omega_rule(**part, **options)[0] for part in parts]
    states = [
        exp_omega_rule(**cut(part, 0, start), **options, output_final_state=True)[1]
        for part, start in zip(parts, starts, strict=True)
    ]
    state = joined(states)
    capacities = set()
    for step in range(6):
        token = {
            name: torch.stack([x[n, start + step] for n, start in enumerate(starts)])
            for name, x in inputs.items()
        }
        o = exp_omega_rule_update(**token, state=state, **options)
        capacities.add(state.capacity)
        for n, start in enumerate(starts):
            assert_same(o[n], whole[n][0, start + step])
    assert capacities == {10, 20}  # twice 5, twice 10: not at every token
    assert (state.length, state.position.tolist()) == (11, [6, 9, 11])


def joined(states: Sequence[ExpOmegaState | None]) -> ExpOmegaState:
    length = max(state.length for state in states if state)

    def grown(tensor: Tensor) -> Tensor:
        return torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, length - tensor.shape[1]))

    def stack(name: str) -> tuple[Tensor, ...]:
        return (torch.cat([grown(getattr(state, name)[0]) for state in states]),)

    return ExpOmegaState(
        keys=torch.cat([grown(state.keys) for state in states if state]),
        coefficients=stack("coefficients"),
        momentum=stack("momentum"),
        weights=(),
        chunk_weights=stack("chunk_weights"),
        k_tail=torch.cat([state.k_tail for state in states if state]),
        v_tail=torch.cat([state.v_tail for state in states if state]),
        position=torch.cat([state.position for state in states if state]),
        length=length,
    )


def test_update_refuses_what_it_cannot_do() -> None:
    inputs = {name: x[:, 0] for name, x in make(1).items()}
    sizes = {"num_sequences": 2, "num_heads": 2, "key_dim": 5, "value_dim": 5, "window": 4}
    state = ExpOmegaState.init(None, **sizes, momentum=True, dtype=torch.float64)
    live = {**inputs, "q": inputs["q"].clone().requires_grad_()}
    with pytest.raises(RuntimeError, match=r"exp_omega_rule_update.*T = 1"):
        exp_omega_rule_update(**live, state=state)
    with torch.no_grad():
        exp_omega_rule_update(**live, state=state)
    plain = ExpOmegaState.init(None, **sizes, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="exp_omega_rule_update: log_theta: wanted None"):
        exp_omega_rule_update(**inputs, state=plain)
    full = ExpOmegaState.init(None, **sizes, momentum=True, capacity=2, dtype=torch.float64)
    full.position += 2  # what `length` does not tell
    with pytest.raises(RuntimeError, match=r"state\.position: wanted .*capacity 2.*got 2"):
        exp_omega_rule_update(**inputs, state=full)


@pytest.mark.parametrize(
    "change, text",
    [
        ({"objective": "l1"}, "objective: wanted 'l2' or 'dot', got 'l1'"),
        ({"normalize": "max"}, "normalize: wanted 'none', 'softmax' or 'rms', got 'max'"),
        ({"activation": "relu"}, "activation: wanted 'gelu', 'silu' or 'identity', got 'relu'"),
        ({"scale": "x"}, "scale: wanted a number or None, got str"),
        ({"chunk_size": 0}, "chunk_size: wanted an integer >= 1, got 0"),
        ({"weights": 3}, "weights: wanted a tuple of tensors, got int"),
        ({"weights": (torch.ones(2, 5, 5),)}, r"weights: wanted none, \(W0, W2\) or"),
        ({"weights": (torch.ones(2, 7, 4), torch.ones(2, 5, 7))}, r"weights\[0\]: wanted"),
        ({"initial_state": 1}, "initial_state: wanted an ExpOmegaState, got int"),
        ({"cu_seqlens": torch.tensor([0, 3])}, "q: wanted .* B = 1"),
        ({"v": torch.ones(2, 4, 2, 3), "residual": True}, "residual: wanted False"),
    ],
)
def test_bad_input(change: dict[str, Any], text: str) -> None:
    inputs = {name: x.float() for name, x in make(4).items()}
    with pytest.raises((ValueError, RuntimeError), match="exp_omega_rule: " + text):
        exp_omega_rule(**(inputs | change))


@pytest.mark.parametrize(
    "field", ["keys", "coefficients", "momentum", "chunk_weights", "k_tail", "v_tail", "position"]
)
def test_bad_state(field: str) -> None:
    inputs = {name: x.float() for name, x in make(4).items()}
    _, state = exp_omega_rule(**inputs, weights=weights_of_float(), output_final_state=True)
    assert state is not None
    exp_omega_rule(**inputs, initial_state=state)
    found = getattr(state, field)
    shorter = found[:-1] if field == "position" else found[0][..., :-1]
    if isinstance(found, Tensor) and field != "position":
        shorter = found[..., :-1]
    setattr(state, field, (shorter, *found[1:]) if isinstance(found, tuple) else shorter)
    with pytest.raises(RuntimeError, match=rf"exp_omega_rule: initial_state\.{field}.*: wanted"):
        exp_omega_rule(**inputs, initial_state=state)


@pytest.mark.parametrize("field", ["coefficients", "momentum", "weights", "chunk_weights"])
def test_state_shorter_than_the_sums_is_refused(field: str) -> None:
    """Kernels add to it in place as to float32; the last tensor is a matrix."""
    inputs = {name: x.float() for name, x in make(1).items()}
    weights = None if field == "coefficients" else weights_of_float()
    _, state = exp_omega_rule(**inputs, weights=weights, output_final_state=True)
    assert state is not None
    state.reserve(1)
    *others, last = getattr(state, field)
    setattr(state, field, (*others, last.bfloat16()))
    wanted = rf"state\.{field}\[\d\]: wanted float32, got bfloat16"
    with pytest.raises(RuntimeError, match="exp_omega_rule: initial_" + wanted):
        exp_omega_rule(**inputs, initial_state=state)
    with pytest.raises(RuntimeError, match="exp_omega_rule_update: " + wanted):
        exp_omega_rule_update(**{name: x[:, 0] for name, x in inputs.items()}, state=state)


@pytest.mark.parametrize(
    "field",
    ["keys", "coefficients", "momentum", "weights", "chunk_weights", "k_tail", "position"],
)
def test_update_refuses_expanded_states(field: str) -> None:
    inputs = {name: x.float() for name, x in make(1).items()}
    _, state = exp_omega_rule(**inputs, weights=weights_of_float(), output_final_state=True)
    assert state is not None
    state.reserve(1)
    found = getattr(state, field)
    shared = (found if isinstance(found, Tensor) else found[0])[:1]
    shared = shared.expand(2, *shared.shape[1:])
    setattr(state, field, shared if isinstance(found, Tensor) else (shared, *found[1:]))
    text = rf"state\.{field}: wanted an element in memory of its own .* stride 0 along dimension 0"
    with pytest.raises(RuntimeError, match="exp_omega_rule_update: " + text):
        exp_omega_rule_update(**{name: x[:, 0] for name, x in inputs.items()}, state=state)


def test_rows_do_not_grow_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"num_sequences": 2, "num_heads": 2, "key_dim": 5, "value_dim": 5, "window": 4}
    state = ExpOmegaState.init(None, **sizes, capacity=3)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    state.reserve(3)
    with pytest.raises(RuntimeError, match=r"n: wanted at most 3 .* got 4; reserve before"):
        state.reserve(4)


def weights_of_float() -> tuple[Tensor, ...]:
    weights = make_weights("mlp")
    assert weights is not None
    return tuple(weight.float() for weight in weights)


def test_saves_for_training_alone_and_linearly() -> None:
    """What the backward keeps grows with T, not with T²."""

    def kept(tokens: int) -> int:
        inputs = {name: x.requires_grad_() for name, x in make(tokens, W=2).items()}
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: sizes.append(x.numel()) or x, lambda x: x
        ):
            exp_omega_rule(**inputs, objective="l2", normalize="softmax", chunk_size=16)
        return sum(sizes)

    assert math.isclose(kept(512) / kept(256), 2.0, rel_tol=0.01)
