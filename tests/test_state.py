"""States: going on from one is one pass, packed is separate, updates are in place."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas_ext import OmegaState, omega_rule, omega_rule_update
from atlas_ext.testing import (
    conditioned,
    map_tensors,
    memory_weights,
    named_tensors,
    omega_state,
    omega_tensors,
    relative_error,
)

T, C = 11, 4
SIZES = {"H": 2, "K": 4, "V": 3}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {"W": 1, "theta": False},
    "momentum": {"W": 3, "theta": True},
    "wide_window": {"W": 7, "theta": True, "objective": "dot"},
    "features": {"W": 3, "theta": True, "degree": 2},
    "muon": {"W": 3, "theta": True, "ns_steps": 3, "ns_every": 3},
    "mlp": {"W": 3, "theta": True, "memory": "mlp"},
    "gated": {"W": 6, "memory": "gated_mlp", "activation": "silu", "degree": 2},
    "mlp_muon": {"W": 4, "theta": True, "memory": "mlp", "ns_steps": 3, "ns_every": 2},
    "gated_muon": {"W": 2, "theta": True, "memory": "gated_mlp", "ns_steps": 3, "ns_every": 3},
}
each_variant = pytest.mark.parametrize("variant", VARIANTS)
each_memory = pytest.mark.parametrize("memory", ["linear", "mlp", "gated_mlp"])


def make(
    variant: str, B: int = 2, length: int = T, sequences: int | None = None
) -> tuple[dict[str, Any], tuple[Tensor, ...], dict[str, Any]]:
    """Token tensors, weights [N, H, out, in] and options, in float64."""
    options = dict(VARIANTS[variant])
    generator = torch.Generator().manual_seed(0)
    shape = {"W": options.pop("W"), "theta": options.pop("theta", False), **SIZES}
    tokens = omega_tensors(generator, (B, length), **shape)
    memory = {"memory": options.pop("memory", "linear"), "F": 6, "V": 3}
    D = 15 if "degree" in options else 4
    weights = memory_weights(generator, B if sequences is None else sequences, 2, D=D, **memory)
    return tokens, weights, {"chunk_size": C, **options}


def piece(tokens: dict[str, Tensor], start: int, stop: int) -> dict[str, Tensor]:
    return {name: tensor[:, start:stop] for name, tensor in tokens.items()}


def assert_states_equal(actual: OmegaState, wanted: OmegaState, tolerance: float = 1e-9) -> None:
    found, expected = named_tensors(actual), named_tensors(wanted)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert relative_error(found[name], tensor) < tolerance, name


@each_variant
def test_prefill_at_every_split_point(variant: str) -> None:
    tokens, weights, options = make(variant)
    options["output_final_state"] = True
    whole, final = omega_rule(**tokens, weights=weights, **options)
    for split in range(T + 1):
        first, state = omega_rule(**piece(tokens, 0, split), weights=weights, **options)
        second, end = omega_rule(**piece(tokens, split, T), initial_state=state, **options)
        assert relative_error(torch.cat([first, second], 1), whole) < 1e-9, split
        assert_states_equal(end, final)
        assert torch.equal(state.position, torch.full((2,), split))


@each_variant
def test_decoding_token_by_token(variant: str) -> None:
    tokens, weights, options = make(variant)
    whole, final = omega_rule(**tokens, weights=weights, **options, output_final_state=True)
    for split in (0, 1, C - 1, C, 6):
        prefix = piece(tokens, 0, split)
        _, state = omega_rule(**prefix, weights=weights, **options, output_final_state=True)
        for t in range(split, T):
            one = {name: tensor[:, t] for name, tensor in tokens.items()}
            out = omega_rule_update(**one, state=state, **options)
            assert relative_error(out, whole[:, t]) < 1e-9, (split, t)
        assert_states_equal(state, final)


@each_variant
def test_gradients_through_a_split(variant: str) -> None:
    tokens, weights, options = make(variant, length=7)
    options["output_final_state"] = True
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tokens.items()}
    start = tuple(w.clone().requires_grad_() for w in weights)
    wanted = None
    for split in (None, 1, 3, 4, 6):
        if split is None:
            out, end = omega_rule(**leaves, weights=start, **options)
        else:
            first, state = omega_rule(**piece(leaves, 0, split), weights=start, **options)
            second, end = omega_rule(**piece(leaves, split, 7), initial_state=state, **options)
            out = torch.cat([first, second], 1)
        floats = [t for t in (out, *named_tensors(end).values()) if t.is_floating_point()]
        loss = sum((i + 1) * t.square().sum() for i, t in enumerate(floats))
        grads = torch.autograd.grad(loss, [*leaves.values(), *start])
        if wanted is None:
            wanted = grads
        for name, grad, expected in zip([*leaves, *range(len(start))], grads, wanted, strict=True):
            assert relative_error(grad, expected) < 1e-8, (split, name)


@each_variant
@pytest.mark.parametrize("lengths", [(4, 0, 7), (0, 1, 10), (11,), (3, 8, 0)])
def test_packed_equals_separate(variant: str, lengths: Sequence[int]) -> None:
    tokens, weights, options = make(variant, B=1, sequences=len(lengths))
    options["output_final_state"] = True
    ends = [0, *itertools.accumulate(lengths)]
    for dtype in (torch.int32, torch.int64):
        cu_seqlens = torch.tensor(ends, dtype=dtype)
        out, state = omega_rule(**tokens, weights=weights, **options, cu_seqlens=cu_seqlens)
        for n, (start, stop) in enumerate(itertools.pairwise(ends)):
            one = piece(tokens, start, stop)
            own = tuple(w[n : n + 1] for w in weights)
            wanted, end = omega_rule(**one, weights=own, **options)
            if stop > start:
                assert relative_error(out[:, start:stop], wanted) < 1e-12
            assert_states_equal(map_tensors(lambda _, t, n=n: t[n : n + 1], state), end)


@pytest.mark.parametrize("variant", ["momentum", "mlp_muon"])
@pytest.mark.parametrize("count", [0, 1, C - 1, C, C + 1, 2 * C])
def test_contents_of_the_final_state(count: int, variant: str) -> None:
    tokens, weights, options = make(variant)
    _, state = omega_rule(
        **piece(tokens, 0, count), weights=weights, **options, output_final_state=True
    )
    boundary = count - count % C
    head = piece(tokens, 0, boundary)
    _, chunk = omega_rule(**head, weights=weights, **options, output_final_state=True)
    for found, wanted in zip(state.chunk_weights, chunk.weights, strict=True):
        assert relative_error(found, wanted) < 1e-12
    if count % C == 0:
        assert all(map(torch.equal, state.chunk_weights, state.weights))
    window = tokens["gamma"].shape[-1] - 1
    for name, tail in (("k", state.k_tail), ("v", state.v_tail)):
        padded = torch.cat([torch.zeros_like(tokens[name][:, :window]), tokens[name][:, :count]], 1)
        assert torch.equal(tail, padded[:, -window:]), name


def test_slots_of_the_tail_before_the_start_do_nothing() -> None:
    tokens, _, _ = make("momentum", length=5)
    state = omega_state(torch.Generator().manual_seed(1), (0, 1), W=3, momentum=True, **SIZES)
    wanted, final = omega_rule(**tokens, initial_state=state, output_final_state=True)
    dirty = state._replace(k_tail=state.k_tail.clone(), v_tail=state.v_tail.clone())
    dirty.k_tail[0], dirty.v_tail[0] = 1e3, -1e3
    dirty.k_tail[1, 0], dirty.v_tail[1, 0] = 1e3, -1e3
    out, end = omega_rule(**tokens, initial_state=dirty, output_final_state=True)
    assert torch.equal(out, wanted)
    assert_states_equal(end, final, 1e-15)


@each_memory
def test_momentum_and_log_theta_need_not_agree(memory: str) -> None:
    tokens, _, _ = make("momentum", length=5)
    shape = {"W": 3, "F": 6, "memory": memory, **SIZES}
    state = omega_state(torch.Generator().manual_seed(1), (2, 3), momentum=True, **shape)
    options = {"chunk_size": C, "output_final_state": True}

    zero = state._replace(momentum=tuple(map(torch.zeros_like, state.weights)))
    none = state._replace(momentum=None)
    out, end = omega_rule(**tokens, initial_state=none, **options)
    wanted, wanted_end = omega_rule(**tokens, initial_state=zero, **options)
    assert relative_error(out, wanted) < 1e-12
    assert_states_equal(end, wanted_end)

    tokens.pop("log_theta")
    out, end = omega_rule(**tokens, initial_state=state, **options)
    assert end.momentum is None
    assert torch.equal(out, omega_rule(**tokens, initial_state=none, **options)[0])


@pytest.mark.parametrize("shared", [True, False])
def test_init_is_the_state_before_the_first_token(shared: bool) -> None:
    tokens, weights, options = make("momentum")
    weights = (weights[0][0],) if shared else weights
    state = OmegaState.init(
        weights, num_sequences=2, window=3, key_dim=4, value_dim=3, momentum=True
    )
    assert state.weights[0].dtype == state.k_tail.dtype == torch.float64
    pointers = [t.untyped_storage().data_ptr() for t in (*named_tensors(state).values(), *weights)]
    assert len(set(pointers)) == len(pointers)
    out, _ = omega_rule(**tokens, initial_state=state, **options)
    assert relative_error(out, omega_rule(**tokens, weights=weights, **options)[0]) < 1e-12


def test_a_state_takes_the_place_of_weights() -> None:
    tokens, weights, _ = make("momentum", length=3)
    state = omega_state(torch.Generator().manual_seed(1), (2, 3), W=3, momentum=True, **SIZES)
    alone, _ = omega_rule(**tokens, initial_state=state)
    assert torch.equal(omega_rule(**tokens, weights=weights, initial_state=state)[0], alone)


def test_a_tail_of_another_dtype() -> None:
    tokens, _, _ = make("momentum", length=3)
    state = omega_state(torch.Generator().manual_seed(1), (2, 3), W=3, momentum=True, **SIZES)
    half = {n: t.to(torch.bfloat16 if n in "qkv" else torch.float32) for n, t in tokens.items()}
    single = map_tensors(lambda _, t: t.float() if t.is_floating_point() else t, state)
    wide = {name: tensor.double() for name, tensor in half.items()}
    wanted, _ = omega_rule(**wide, initial_state=state, chunk_size=C)
    out, end = omega_rule(**half, initial_state=single, chunk_size=C, output_final_state=True)
    assert out.dtype == torch.bfloat16 and end.k_tail.dtype == torch.float32
    assert relative_error(out, wanted) < 2e-2
    one = {name: tensor[:, 0] for name, tensor in half.items()}
    assert relative_error(omega_rule_update(**one, state=single, chunk_size=C), wanted[:, 0]) < 2e-2
    assert torch.equal(single.k_tail[:, -1], half["k"][:, 0].float())


def update_inputs(
    rows: int, slots: int, memory: str = "linear"
) -> tuple[dict[str, Tensor], OmegaState]:
    generator = torch.Generator().manual_seed(2)
    tokens = omega_tensors(generator, (rows,), W=3, theta=True, **SIZES)
    shape = {"W": 3, "F": 6, "memory": memory, **SIZES}
    return tokens, omega_state(generator, range(slots), momentum=True, **shape)


@each_memory
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_update_of_chosen_slots(dtype: torch.dtype, memory: str) -> None:
    tokens, state = update_inputs(rows=3, slots=5, memory=memory)
    before = map_tensors(lambda _, tensor: tensor.clone(), state)
    indices = [4, 0, 2]
    out = omega_rule_update(
        **tokens, state=state, state_indices=torch.tensor(indices, dtype=dtype), chunk_size=C
    )
    chosen = map_tensors(lambda _, tensor: tensor[indices].clone(), before)
    wanted = omega_rule_update(**tokens, state=chosen, chunk_size=C)
    assert relative_error(out, wanted) < 1e-14
    assert_states_equal(map_tensors(lambda _, t: t[indices], state), chosen, 1e-14)
    rest = [1, 3]
    for name, tensor in named_tensors(before).items():
        assert torch.equal(named_tensors(state)[name][rest], tensor[rest]), name


@each_memory
def test_update_is_in_place(memory: str) -> None:
    tokens, state = update_inputs(rows=2, slots=2, memory=memory)
    pointers = {name: tensor.data_ptr() for name, tensor in named_tensors(state).items()}
    versions = {name: tensor._version for name, tensor in named_tensors(state).items()}
    before = map_tensors(lambda _, tensor: tensor.clone(), state)
    omega_rule_update(**tokens, state=state, chunk_size=2)
    for name, tensor in named_tensors(state).items():
        assert tensor.data_ptr() == pointers[name], name
        assert tensor._version > versions[name], f"{name}: autograd does not know of the write"
        assert not torch.equal(tensor, named_tensors(before)[name]), name


@each_memory
def test_update_of_strided_states(memory: str) -> None:
    """A state may be a view into a larger buffer."""
    tokens, state = update_inputs(rows=3, slots=3, memory=memory)
    wide = map_tensors(lambda _, t: torch.stack([t, t], 1)[:, 0], state)
    wanted = omega_rule_update(**tokens, state=state, chunk_size=2)
    assert torch.equal(omega_rule_update(**tokens, state=wide, chunk_size=2), wanted)
    assert_states_equal(wide, state, 1e-15)


def test_update_refuses_to_be_differentiated() -> None:
    tokens, state = update_inputs(rows=2, slots=2)
    for name in tokens:
        live = {**tokens, name: tokens[name].clone().requires_grad_()}
        with pytest.raises(RuntimeError, match=r"omega_rule_update.*T = 1"):
            omega_rule_update(**live, state=state)
        with torch.no_grad():
            omega_rule_update(**live, state=map_tensors(lambda _, t: t.clone(), state))
    learned = state._replace(weights=(conditioned(torch.Generator(), 2, 2, 3, 4).requires_grad_(),))
    with pytest.raises(RuntimeError, match="omega_rule_update"):
        omega_rule_update(**tokens, state=learned)


@pytest.mark.parametrize(
    "field", ["weights", "momentum", "chunk_weights", "k_tail", "v_tail", "position"]
)
def test_update_refuses_expanded_states(field: str) -> None:
    tokens, state = update_inputs(rows=2, slots=2)

    def expanded(_: str, tensor: Tensor) -> Tensor:
        return tensor[:1].expand(2, *tensor.shape[1:])

    state = state._replace(**{field: map_tensors(expanded, getattr(state, field))})
    text = rf"state\.{field}: wanted an element in memory of its own .* stride 0 along dimension 0"
    with pytest.raises(RuntimeError, match="omega_rule_update: " + text):
        omega_rule_update(**tokens, state=state)


def test_update_under_inference_mode() -> None:
    tokens, state = update_inputs(rows=2, slots=2)
    other = map_tensors(lambda _, tensor: tensor.clone(), state)
    wanted = omega_rule_update(**tokens, state=state)
    with torch.inference_mode():
        inside = map_tensors(lambda _, tensor: tensor.clone(), other)
        assert torch.equal(omega_rule_update(**tokens, state=other), wanted)
        assert torch.equal(omega_rule_update(**tokens, state=inside), wanted)
    assert_states_equal(other, state, 1e-15)
