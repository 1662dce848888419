"""The exponential feature map: attention, agreement with the truncated map, states."""

from __future__ import annotations

import math

import pytest
import torch
from reference_inputs import Inputs, assert_same, make_inputs, make_weights, state_tensors
from torch import Tensor

from atlas_ext.reference import exp_omega_rule, exp_omega_rule_update, omega_rule
from atlas_ext.state import ExpOmegaState

MEMORIES = ["linear", "mlp", "gated_mlp"]


def raw_weights(memory: str) -> tuple[Tensor, ...] | None:
    return None if memory == "linear" else make_weights(memory)


def hebbian() -> Inputs:
    inputs = make_inputs(window=1, momentum=False)
    gates, ones = torch.ones_like(inputs.gamma), torch.ones_like(inputs.eta)
    return inputs._replace(gamma=gates, eta=ones, log_alpha=None)


def test_softmax_attention() -> None:
    """Hebbian, linear memory, alpha = 1, normalised: scaled dot-product attention exactly."""
    q, k, v, *gates = hebbian()
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=True
    ).transpose(1, 2)
    for chunk_size in (1, 4, 64):
        o, _ = exp_omega_rule(q, k, v, *gates, normalize="softmax", chunk_size=chunk_size)
        assert_same(o, expected)
    # Large products overflow exp, not the normalised read.
    o, _ = exp_omega_rule(100 * q, 100 * k, v, *gates, normalize="softmax")
    assert torch.isfinite(o).all()


def test_unnormalised_attention_and_rms() -> None:
    q, k, v, *gates = hebbian()
    scores = torch.einsum("bthd,bihd->bhti", q, k) * 4**-0.5
    expected = torch.einsum("bhti,bihv->bthv", scores.exp().tril(), v)
    assert_same(exp_omega_rule(q, k, v, *gates)[0], expected)
    scaled = expected / (expected.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    assert_same(exp_omega_rule(q, k, v, *gates, normalize="rms")[0], scaled)


def test_delta_rule_in_the_kernel_space() -> None:
    """Dot with a linear memory, window 1 and C = 1: each token stores what attention missed."""
    inputs = make_inputs(window=1, momentum=False)
    o, _ = exp_omega_rule(*inputs, objective="l2", chunk_size=1, scale=0.7)
    for b, h in ((0, 1), (1, 0)):
        k, stored = inputs.k[b, :, h], torch.zeros(0, 4, dtype=torch.float64)
        for t in range(k.shape[0]):
            kernel = (0.7 * k[: t + 1] @ k[t]).exp()
            missed = inputs.v[b, t, h] - kernel[:t] @ stored
            alpha, step = inputs.log_alpha[b, t, h].exp(), inputs.eta[b, t, h]
            new = step * inputs.gamma[b, t, h, 0] * missed
            stored = torch.cat([alpha * stored, new[None]])
            read = (0.7 * k[: t + 1] @ inputs.q[b, t, h]).exp() @ stored
            assert_same(o[b, t, h], read)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("objective", ["l2", "dot"])
@pytest.mark.parametrize("momentum", [False, True])
def test_is_the_limit_of_the_polynomial_map(memory: str, objective: str, momentum: bool) -> None:
    """Small q·k: the degree-4 map is the exponential to 1e-9, for every memory and option.

    The raw-input maps become the degree-1 columns of W1 and W3.
    """
    inputs = make_inputs(momentum=momentum)
    inputs = inputs._replace(q=0.1 * inputs.q, k=0.1 * inputs.k)
    options = {
        "objective": objective,
        "chunk_size": 3,
        "residual": True,
        "output_final_state": True,
    }
    raw = raw_weights(memory)
    features = math.comb(4 + 4, 4)
    if raw is None:
        lifted = (torch.zeros(2, 4, features, dtype=torch.float64),)
    else:
        lifted = (*(torch.zeros(2, 5, features, dtype=torch.float64) for _ in raw[:-1]), raw[-1])
        for wide, narrow in zip(lifted[:-1], raw[:-1], strict=True):
            wide[..., 1:5] = narrow
    o, state = exp_omega_rule(*inputs, weights=raw, scale=1.0, **options)
    expected, lifted_state = omega_rule(*inputs, weights=lifted, degree=4, **options)
    assert_same(o, expected, 1e-8)
    if raw is not None:
        assert_same(state.weights[-1], lifted_state.weights[-1], 1e-8)
        if momentum:
            assert_same(state.momentum[-1], lifted_state.momentum[-1], 1e-8)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("normalize", ["none", "softmax", "rms"])
def test_splits_packing_and_updates(memory: str, normalize: str) -> None:
    inputs, weights = make_inputs(length=8), raw_weights(memory)
    options = {"objective": "l2", "chunk_size": 3, "normalize": normalize, "residual": True}
    with_state = dict(output_final_state=True, **options)
    o, final = exp_omega_rule(*inputs, weights=weights, **with_state)
    for split in range(9):
        head, state = exp_omega_rule(*inputs.tokens(0, split), weights=weights, **with_state)
        tail, state = exp_omega_rule(*inputs.tokens(split, None), initial_state=state, **with_state)
        assert_same(torch.cat([head, tail], dim=1), o)
        assert_same(state, final)

    bounds = torch.tensor([0, 3, 3, 8])
    one = inputs.sequence(0)
    packed, state = exp_omega_rule(*one, weights=weights, cu_seqlens=bounds, **with_state)
    assert (state.position.tolist(), state.length, state.capacity) == ([3, 0, 5], 5, 5)
    again, state = exp_omega_rule(*one, initial_state=state, cu_seqlens=bounds, **with_state)
    separate, kept = exp_omega_rule(*one.tokens(3, 8), weights=weights, **with_state)
    assert_same(packed[:, 3:], separate)
    separate, kept = exp_omega_rule(*one.tokens(3, 8), initial_state=kept, **with_state)
    assert_same(again[:, 3:], separate)
    assert_same([x[2:] for x in state_tensors(state)], state_tensors(kept))

    state = ExpOmegaState.init(
        weights,
        num_sequences=2,
        num_heads=2,
        key_dim=4,
        value_dim=4,
        window=3,
        momentum=True,
        capacity=5,
        dtype=torch.float64,
    )
    keys = state.keys
    for t in range(8):
        token = [x[:, t] for x in inputs]
        assert_same(exp_omega_rule_update(*token, state=state, **options), o[:, t])
        assert (state.keys.data_ptr() == keys.data_ptr()) == (t < 5)
    assert (state.length, state.capacity) == (8, 10)
    again, _ = exp_omega_rule(*inputs, initial_state=state, **options)
    assert_same(again, exp_omega_rule(*inputs, initial_state=final, **options)[0])


@pytest.mark.parametrize("memory", MEMORIES)
def test_causality(memory: str) -> None:
    inputs, other = make_inputs(length=6), make_inputs(length=6, seed=9)
    options = {"weights": raw_weights(memory), "objective": "l2", "chunk_size": 4}
    o, _ = exp_omega_rule(*inputs, **options)
    for t in range(1, 6):
        pairs = zip(inputs, other, strict=True)
        changed = [torch.cat([x[:, :t], y[:, t:]], dim=1) for x, y in pairs]
        assert torch.equal(exp_omega_rule(*changed, **options)[0][:, :t], o[:, :t])


@pytest.mark.parametrize("memory", MEMORIES)
def test_gradients(memory: str) -> None:
    sizes = {"heads": 1, "key_dim": 2, "value_dim": 2}
    inputs = make_inputs(batch=1, length=4, window=2, **sizes)
    weights = () if memory == "linear" else make_weights(memory, hidden=2, **sizes)
    leaves = [x.requires_grad_() for x in (*inputs, *weights)]

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        o, state = exp_omega_rule(
            *tensors[:7],
            weights=tensors[7:] or None,
            objective="l2",
            normalize="softmax",
            chunk_size=3,
            output_final_state=True,
        )
        return (o, *(x for x in state_tensors(state) if x.is_floating_point()))

    assert torch.autograd.gradcheck(call, leaves)


def test_dtypes() -> None:
    inputs = make_inputs()
    for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 2e-2)):
        narrow = [x.to(dtype) for x in inputs[:3]] + [x.float() for x in inputs[3:]]
        o, state = exp_omega_rule(*narrow, output_final_state=True)
        assert o.dtype == state.keys.dtype == state.v_tail.dtype == dtype
        assert state.coefficients[0].dtype == torch.float32
        wide, _ = exp_omega_rule(*(x.double() for x in narrow))
        assert (o.double() - wide).norm() <= tolerance * wide.norm()


def test_bad_input() -> None:
    inputs = make_inputs()
    for change, text in (
        ({"objective": "l1"}, "objective: wanted one of 'l2', 'dot'"),
        ({"normalize": "max"}, "normalize: wanted one of 'none', 'softmax', 'rms'"),
        ({"activation": "relu"}, "activation: wanted one of"),
        ({"scale": "x"}, "scale: wanted a number or None, got str"),
        ({"chunk_size": 0}, "chunk_size: wanted an integer >= 1"),
        ({"weights": make_weights("linear")}, r"weights: wanted None, \(W0, W2\) or"),
        ({"weights": make_weights("mlp", key_dim=3)}, r"weights\[0\]: wanted \[2, 5, 4\] or"),
        ({"initial_state": 1}, "initial_state: wanted an ExpOmegaState, got int"),
    ):
        with pytest.raises(ValueError, match="exp_omega_rule: " + text):
            exp_omega_rule(*inputs, **change)
    state = ExpOmegaState.init(
        None, num_sequences=2, num_heads=2, key_dim=4, value_dim=4, window=3, dtype=torch.float64
    )
    token = [x[:, 0] for x in inputs]
    with pytest.raises(ValueError, match=r"exp_omega_rule_update: state\.momentum: wanted"):
        exp_omega_rule_update(*token, state=state)
    with pytest.raises(RuntimeError, match="not differentiable"):
        exp_omega_rule_update(token[0].requires_grad_(), *token[1:6], state=state)
