"""States of the Omega rule: what they hold, whose memory it is, what is masked, what is refused."""

from __future__ import annotations

import pytest
import torch
from reference_inputs import MEMORIES, assert_same, make_inputs, make_weights, state_tensors
from torch import Tensor

from atlas_ext.reference import chunked_omega_rule, omega_rule, omega_rule_update
from atlas_ext.state import OmegaState

RULES = [omega_rule, chunked_omega_rule]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [0, 1, 3, 6])
def test_final_state(rule: object, length: int) -> None:
    inputs = make_inputs(length=length, window=4)
    weights = make_weights("mlp")
    o, state = rule(*inputs, weights=weights, chunk_size=3, output_final_state=True)
    assert o.shape == (2, length, 2, 4)
    assert state.position.tolist() == [length, length]
    expected = torch.cat([torch.zeros(2, 3, 2, 4, dtype=torch.float64), inputs.k], dim=1)
    assert torch.equal(state.k_tail, expected[:, -3:])
    expected = torch.cat([torch.zeros(2, 3, 2, 4, dtype=torch.float64), inputs.v], dim=1)
    assert torch.equal(state.v_tail, expected[:, -3:])
    closed = length % 3 == 0
    for current, start in zip(state.weights, state.chunk_weights, strict=True):
        assert torch.equal(current, start) == closed
    assert rule(*inputs, weights=weights, chunk_size=3)[1] is None


@pytest.mark.parametrize("rule", RULES)
def test_no_tokens_pass_the_state_through(rule: object) -> None:
    inputs = make_inputs(length=5)
    options = {"chunk_size": 4, "output_final_state": True}
    _, state = rule(*inputs, weights=make_weights("linear"), **options)
    o, same = rule(*inputs.tokens(0, 0), initial_state=state, **options)
    assert o.shape == (2, 0, 2, 4)
    for one, other in zip(state_tensors(same), state_tensors(state), strict=True):
        assert torch.equal(one, other)
        assert one.data_ptr() != other.data_ptr()
    empty = make_inputs(batch=0)
    o, nothing = rule(*empty, weights=make_weights("linear"), **options)
    assert o.shape == (0, 11, 2, 4)
    assert nothing.weights[0].shape == (0, 2, 4, 4)


@pytest.mark.parametrize("rule", RULES)
def test_own_memory(rule: object) -> None:
    """No two tensors of a state share memory, nor any with an input."""

    def storages(tensors: list[Tensor]) -> list[int]:
        return [x.untyped_storage().data_ptr() for x in tensors if x.numel() > 0]

    for length in (0, 2, 4):
        for memory in MEMORIES:
            inputs, weights = make_inputs(length=length), make_weights(memory)
            options = {"chunk_size": 4, "output_final_state": True}
            _, state = rule(*inputs, weights=weights, **options)
            _, later = rule(*inputs, initial_state=state, **options)
            found = [x for s in (state, later) for x in state_tensors(s)]
            found += [*inputs, *weights]
            assert len(set(storages(found))) == len(storages(found))
    fresh = OmegaState.init(
        make_weights("linear"), num_sequences=1, window=3, key_dim=4, value_dim=4, momentum=True
    )
    assert len(set(storages(state_tensors(fresh)))) == 6


@pytest.mark.parametrize("rule", RULES)
def test_momentum_presence(rule: object) -> None:
    inputs = make_inputs()
    weights = make_weights("linear")
    without = inputs._replace(log_theta=None)
    options = {"chunk_size": 4, "output_final_state": True}
    _, state = rule(*inputs, weights=weights, **options)
    assert state.momentum is not None
    # log_theta None: S_t = G_t, whatever the state holds, and no momentum comes back.
    o, final = rule(*without, initial_state=state, **options)
    expected, _ = rule(*without, initial_state=state._replace(momentum=None), **options)
    assert torch.equal(o, expected)
    assert final.momentum is None
    # log_theta given, none in the state: S = 0 to begin with.
    zeros = tuple(torch.zeros_like(w) for w in state.weights)
    o, final = rule(*inputs, initial_state=state._replace(momentum=None), **options)
    expected, other = rule(*inputs, initial_state=state._replace(momentum=zeros), **options)
    assert torch.equal(o, expected)
    assert_same(final, other)


@pytest.mark.parametrize("rule", RULES)
def test_slots_before_the_start_do_not_exist(rule: object) -> None:
    """phi(0) is not 0: a window that reaches before the start is the shorter window."""
    inputs = make_inputs(length=3, window=6)
    weights = make_weights("mlp", degree=2)
    options = {"chunk_size": 2, "degree": 2, "output_final_state": True}
    o, state = rule(*inputs, weights=weights, **options)
    short, _ = rule(*inputs._replace(gamma=inputs.gamma[..., :3]), weights=weights, **options)
    assert_same(o, short)
    assert_same(rule(*inputs, weights=weights, **options)[0], o)
    # What a state's tail holds before the start does not matter either.
    zeroed = OmegaState.init(weights, num_sequences=2, window=6, key_dim=4, value_dim=4)
    dirty = zeroed._replace(k_tail=zeroed.k_tail + 7, v_tail=zeroed.v_tail - 3)
    from_dirty, final = rule(*inputs, initial_state=dirty, **options)
    assert_same(from_dirty, o)
    assert_same(final.k_tail, state.k_tail)


def test_masked_gates_have_no_gradient() -> None:
    inputs = make_inputs(length=4, window=3)
    gamma = inputs.gamma.requires_grad_()
    o, _ = omega_rule(*inputs, weights=make_weights("linear", degree=2), degree=2)
    (gradient,) = torch.autograd.grad(o.sum(), gamma)
    assert (gradient[:, 0, :, 1:] == 0).all()
    assert (gradient[:, 1, :, 2] == 0).all()
    assert (gradient[:, 2:] != 0).all()


def test_start_in_mid_chunk_uses_the_chunk_weights() -> None:
    inputs = make_inputs()
    options = {"chunk_size": 64, "output_final_state": True}
    _, state = omega_rule(*inputs, weights=make_weights("linear"), **options)
    moved = state._replace(chunk_weights=(state.chunk_weights[0] + 1,))
    for rule in RULES:
        assert not torch.allclose(
            rule(*inputs, initial_state=state, **options)[0],
            rule(*inputs, initial_state=moved, **options)[0],
        )
        _, final = rule(*inputs, initial_state=moved, **options)
        assert torch.equal(final.chunk_weights[0], moved.chunk_weights[0])


@pytest.mark.parametrize("rule", RULES)
def test_stride_of_newton_schulz(rule: object) -> None:
    """The memory is written only at positions r-1, 2r-1, ...; the position counts across calls."""
    inputs = make_inputs(length=7)._replace(log_alpha=None)
    options = {"chunk_size": 2, "ns_steps": 2, "ns_every": 3, "output_final_state": True}
    weights = make_weights("linear")
    state = OmegaState.init(weights, num_sequences=2, window=3, key_dim=4, value_dim=4)
    changed = []
    for t in range(7):
        _, after = rule(*inputs.tokens(t, t + 1), initial_state=state, **options)
        changed.append(not torch.equal(after.weights[0], state.weights[0]))
        state = after
    assert changed == [False, False, True, False, False, True, False]
    # Without Newton-Schulz the stride does nothing.
    plain = rule(*inputs, weights=weights, chunk_size=2, ns_every=3)[0]
    assert torch.equal(plain, rule(*inputs, weights=weights, chunk_size=2)[0])


def test_weights_of_each_sequence() -> None:
    inputs = make_inputs()
    weights = torch.stack([make_weights("linear", seed=n)[0] for n in range(2)])
    o, _ = omega_rule(*inputs, weights=(weights,))
    for n in range(2):
        expected, _ = omega_rule(*inputs.sequence(n), weights=(weights[n],))
        assert_same(o[n : n + 1], expected)


def test_tail_of_another_dtype() -> None:
    inputs = make_inputs()
    weights = make_weights("linear")
    options = {"chunk_size": 4, "output_final_state": True}
    state = OmegaState.init(
        weights, num_sequences=2, window=3, key_dim=4, value_dim=4, tail_dtype=torch.bfloat16
    )
    _, final = omega_rule(*inputs, initial_state=state, **options)
    assert final.k_tail.dtype == torch.bfloat16
    assert torch.equal(final.k_tail, inputs.k[:, -2:].bfloat16())


def test_update_refuses() -> None:
    inputs = make_inputs()
    token = [x[:, 0] for x in inputs]
    shape = {"num_sequences": 2, "window": 3, "key_dim": 4, "value_dim": 4}
    weights = make_weights("linear")
    plain = OmegaState.init(weights, **shape)
    state = OmegaState.init(weights, momentum=True, **shape)
    with pytest.raises(ValueError, match=r"omega_rule_update: state\.momentum: wanted"):
        omega_rule_update(*token, state=plain)
    with pytest.raises(ValueError, match=r"omega_rule_update: state\.momentum: wanted"):
        omega_rule_update(*token[:6], state=state)
    for slots in ([0, 0], [0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="state_indices: wanted distinct slots below N = 2"):
            omega_rule_update(*token, state=state, state_indices=torch.tensor(slots))
    with pytest.raises(RuntimeError, match="not differentiable"):
        omega_rule_update(token[0].requires_grad_(), *token[1:], state=state)
    with torch.no_grad():
        omega_rule_update(*token, state=state)


BAD = [
    ({"q": torch.zeros(2, 3, 4)}, r"q: wanted \[B, T, H, K\], got \[2, 3, 4\]"),
    ({"k": torch.zeros(2, 11, 2, 5).double()}, r"k: wanted shape \[B, T, H, K\]"),
    ({"v": torch.zeros(2, 10, 2, 4).double()}, r"v: wanted shape \[B, T, H, V\]"),
    ({"v": torch.zeros(2, 11, 2, 4)}, "v: wanted q's dtype"),
    ({"gamma": torch.zeros(2, 11, 2).double()}, r"gamma: wanted \[B, T, H, W\]"),
    ({"eta": torch.zeros(2, 11, 3).double()}, r"eta: wanted shape \[B, T, H\]"),
    ({"eta": torch.zeros(2, 11, 2).half()}, "eta: wanted float32 or q's dtype"),
    ({"log_alpha": torch.zeros(2, 11, 1).double()}, "log_alpha: wanted shape"),
    ({"log_theta": torch.zeros(2, 11, 2, 1).double()}, "log_theta: wanted shape"),
    ({"weights": None}, "weights: wanted weights or an initial_state, got None"),
    ({"weights": ()}, "weights: wanted 1, 2 or 3 matrices, got 0"),
    ({"weights": (torch.zeros(2, 4, 5).double(),)}, r"weights\[0\]: wanted shape \[2, 2, 4, 4\]"),
    ({"weights": (torch.zeros(2, 4, 4).half(),)}, r"weights\[0\]: wanted torch.float32 or"),
    ({"objective": "l1"}, "objective: wanted one of 'l2', 'dot', got 'l1'"),
    ({"activation": "relu"}, "activation: wanted one of 'gelu'"),
    ({"degree": 0}, "degree: wanted an integer from 1 to 4, got 0"),
    ({"feature_scales": torch.ones(3)}, "feature_scales: wanted None where degree is None"),
    ({"ns_steps": -1}, "ns_steps: wanted an integer >= 0, got -1"),
    ({"ns_schedule": "x", "ns_steps": 1}, "ns_schedule: wanted one of"),
    ({"ns_scale": "x"}, "ns_scale: wanted one of"),
    ({"ns_every": 0}, "ns_every: wanted an integer >= 1, got 0"),
    ({"chunk_size": 0}, "chunk_size: wanted an integer >= 1, got 0"),
    ({"cu_seqlens": torch.tensor([0, 11])}, "q: wanted B = 1 where cu_seqlens is given"),
    ({"cu_seqlens": torch.tensor([0.0, 11.0])}, r"cu_seqlens: wanted \[N\+1\] of int32 or int64"),
]


@pytest.mark.parametrize(("change", "text"), BAD, ids=[text.split(":")[0] for _, text in BAD])
def test_bad_input(change: dict[str, object], text: str) -> None:
    arguments = {**make_inputs()._asdict(), "weights": make_weights("linear"), **change}
    for rule in RULES:
        with pytest.raises(ValueError, match=f"{rule.__name__}: {text}"):
            rule(**arguments)


def test_bad_states_and_bounds() -> None:
    inputs = make_inputs(batch=1)
    options = {"output_final_state": True}
    _, state = omega_rule(*inputs, weights=make_weights("linear"), **options)
    for change, text in (
        ({"weights": (torch.zeros(1, 2, 4, 5).double(),)}, r"weights\[0\]: wanted shape"),
        ({"weights": (state.weights[0].float(),)}, r"weights\[0\]: wanted torch.float64"),
        ({"momentum": (torch.zeros(1, 2, 4, 5).double(),)}, r"momentum\[0\]: wanted shape"),
        ({"k_tail": torch.zeros(1, 3, 2, 4).double()}, r"k_tail: wanted shape \[N, W-1, H, K\]"),
        ({"position": torch.zeros(1)}, "position: wanted int64"),
    ):
        with pytest.raises(ValueError, match=rf"omega_rule: initial_state\.{text}"):
            omega_rule(*inputs, initial_state=state._replace(**change))
    for bounds in ([0, 10], [1, 11], [0, 7, 5, 11]):
        with pytest.raises(ValueError, match="cu_seqlens: wanted 0 to T = 11, never decreasing"):
            omega_rule(*inputs, weights=make_weights("linear"), cu_seqlens=torch.tensor(bounds))
    with pytest.raises(ValueError, match="residual: wanted False where K = 4 != V = 3"):
        omega_rule(*make_inputs(value_dim=3), weights=make_weights("linear"), residual=True)
