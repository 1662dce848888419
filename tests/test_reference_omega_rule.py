"""The Omega rule of the reference: the loop against an independent one and against itself."""

from __future__ import annotations

from itertools import pairwise, product

import pytest
import torch
from reference_inputs import (
    MEMORIES,
    Inputs,
    assert_same,
    make_inputs,
    make_weights,
    state_tensors,
)
from torch import Tensor

from atlas_ext.reference import (
    chunked_omega_rule,
    newton_schulz,
    omega_rule,
    omega_rule_update,
    poly_features,
)
from atlas_ext.state import OmegaState

OPTIONS = {
    "plain": {},
    "dot": {"objective": "dot"},
    "features": {"degree": 2},
    "muon": {"ns_steps": 2, "ns_every": 2},
    "residual": {"residual": True, "activation": "silu"},
    "all": {
        "degree": 2,
        "ns_steps": 1,
        "ns_every": 3,
        "ns_schedule": "polar_express",
        "ns_scale": "rms",
        "residual": True,
    },
}


def memory_of(weights: tuple[Tensor, ...], x: Tensor, activation: str) -> Tensor:
    act = {"gelu": torch.nn.functional.gelu, "silu": torch.nn.functional.silu}[activation]
    if len(weights) == 1:
        return weights[0] @ x
    if len(weights) == 2:
        return weights[1] @ act(weights[0] @ x)
    return weights[2] @ (act(weights[0] @ x) * (weights[1] @ x))


def independent_rule(
    inputs: Inputs,
    weights: tuple[Tensor, ...],
    chunk_size: int,
    objective: str = "l2",
    activation: str = "gelu",
    residual: bool = False,
    degree: int | None = None,
    ns_steps: int = 0,
    ns_every: int = 1,
    ns_schedule: str = "muon",
    ns_scale: str = "none",
) -> Tensor:
    """One sequence and head at a time, inner gradients by autograd on the loss itself."""
    q, k, v, gamma, eta, log_alpha, log_theta = inputs
    o = torch.empty_like(v)
    for b, h in product(range(q.shape[0]), range(q.shape[2])):
        current = [w[h].clone() for w in weights]
        momentum = [torch.zeros_like(w) for w in current]

        def read(matrices: list[Tensor], key: Tensor) -> Tensor:
            x = key if degree is None else poly_features(key, degree)
            y = memory_of(tuple(matrices), x, activation)
            return key + y if residual else y

        for t in range(q.shape[1]):
            if t % chunk_size == 0:
                reference = [w.clone().requires_grad_() for w in current]
            loss = torch.zeros((), dtype=q.dtype)
            for j in range(min(gamma.shape[-1], t + 1)):
                y, target = read(reference, k[b, t - j, h]), v[b, t - j, h]
                value = 0.5 * (y - target).square().sum() if objective == "l2" else -y @ target
                loss = loss + gamma[b, t, h, j] * value
            step = list(torch.autograd.grad(loss, reference))
            if log_theta is not None:
                theta = log_theta[b, t, h].exp()
                step = momentum = [theta * s + g for s, g in zip(momentum, step, strict=True)]
            if ns_steps > 0:
                writes = t % ns_every == ns_every - 1
                step = [
                    newton_schulz(s, ns_steps, ns_schedule, scale=ns_scale) if writes else 0 * s
                    for s in step
                ]
            alpha = log_alpha[b, t, h].exp()
            current = [alpha * w - eta[b, t, h] * s for w, s in zip(current, step, strict=True)]
            o[b, t, h] = read(current, q[b, t, h])
    return o


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_against_independent_rule(memory: str, options: dict[str, object]) -> None:
    for chunk_size, momentum in ((1, False), (3, True)):
        inputs = make_inputs(batch=1, length=8, momentum=momentum)
        weights = make_weights(memory, degree=options.get("degree"))
        o, _ = omega_rule(*inputs, weights=weights, chunk_size=chunk_size, **options)
        assert_same(o, independent_rule(inputs, weights, chunk_size, **options), 1e-9)


# T, C, W: ragged tail; T < C; W > C; exact recurrence; no window; W > T; one chunk exactly.
SHAPES = [(11, 4, 3), (3, 8, 2), (9, 2, 5), (7, 1, 4), (8, 4, 1), (3, 2, 6), (4, 4, 2)]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_chunked_equals_loop(memory: str, options: dict[str, object]) -> None:
    """Dual (or segment) form = explicit per-token weights: outputs, final states and gradients."""
    shapes = SHAPES if memory == "linear" else SHAPES[:3]
    for index, (length, chunk_size, window) in enumerate(shapes):
        inputs = make_inputs(length=length, window=window, momentum=index % 2 == 0)
        weights = make_weights(memory, degree=options.get("degree"))
        leaves = [x.requires_grad_() for x in (*inputs, *weights) if x is not None]
        results = []
        for rule in (omega_rule, chunked_omega_rule):
            o, state = rule(
                *inputs,
                weights=weights,
                chunk_size=chunk_size,
                output_final_state=True,
                **options,
            )
            outputs = [o, *(x for x in state_tensors(state) if x.is_floating_point())]
            loss = torch.cat([(x * (1 + x.cos())).flatten() for x in outputs]).sum()
            results.append((o, state, torch.autograd.grad(loss, leaves, materialize_grads=True)))
        (o, state, gradients), (chunked_o, chunked_state, chunked_gradients) = results
        assert_same(chunked_o, o, 1e-10)
        assert_same(chunked_state, state, 1e-10)
        # Newton-Schulz amplifies the round-off of weak directions (rank-deficient S), twice here.
        tolerance = 1e-6 if "ns_steps" in options else 1e-9
        for one, other in zip(chunked_gradients, gradients, strict=True):
            assert (one - other).norm() <= tolerance * (1 + other.norm())


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("rule", [omega_rule, chunked_omega_rule])
def test_every_split_is_one_pass(rule: object, memory: str) -> None:
    inputs = make_inputs(length=7, window=4)
    weights = make_weights(memory)
    options = {"chunk_size": 3, "ns_steps": 2, "ns_every": 2, "output_final_state": True}
    o, final = rule(*inputs, weights=weights, **options)
    for split in range(8):
        head, state = rule(*inputs.tokens(0, split), weights=weights, **options)
        tail, state = rule(*inputs.tokens(split, None), initial_state=state, **options)
        assert_same(torch.cat([head, tail], dim=1), o)
        assert_same(state, final)


@pytest.mark.parametrize("rule", [omega_rule, chunked_omega_rule])
def test_packed_is_separate(rule: object) -> None:
    inputs = make_inputs(batch=1, length=12)
    weights = make_weights("mlp", degree=2)
    bounds = [0, 5, 5, 6, 12]
    options = {"chunk_size": 4, "degree": 2, "ns_steps": 1, "output_final_state": True}
    for dtype in (torch.int32, torch.int64):
        packed, final = rule(
            *inputs, weights=weights, cu_seqlens=torch.tensor(bounds, dtype=dtype), **options
        )
        # And once more from the final state, each sequence at its own phase of a chunk.
        again, last = rule(*inputs, initial_state=final, cu_seqlens=torch.tensor(bounds), **options)
    assert final.position.tolist() == [5, 0, 1, 6]
    for n, (start, end) in enumerate(pairwise(bounds)):
        span = inputs.tokens(start, end)
        o, state = rule(*span, weights=weights, **options)
        assert_same(packed[:, start:end], o)
        assert_same([x[n : n + 1] for x in state_tensors(final)], state_tensors(state))
        o, state = rule(*span, initial_state=state, **options)
        assert_same(again[:, start:end], o)
        assert_same([x[n : n + 1] for x in state_tensors(last)], state_tensors(state))


def test_sequences_at_different_positions() -> None:
    """A batch whose sequences stand at different phases of chunk and stride = each on its own."""
    inputs = make_inputs(batch=3, length=7)
    weights = make_weights("linear")
    options = {"chunk_size": 3, "ns_steps": 1, "ns_every": 2, "output_final_state": True}
    states = []
    for n in range(3):
        before = make_inputs(batch=1, length=n + 2, seed=n + 5)
        states.append(omega_rule(*before, weights=weights, **options)[1])
    joined = OmegaState(
        *(
            tuple(torch.cat(group) for group in zip(*field, strict=True))
            if isinstance(field[0], tuple)
            else torch.cat(field)
            for field in zip(*states, strict=True)
        )
    )
    for rule in (omega_rule, chunked_omega_rule):
        o, final = rule(*inputs, initial_state=joined, **options)
        for n in range(3):
            expected, state = rule(*inputs.sequence(n), initial_state=states[n], **options)
            assert_same(o[n : n + 1], expected)
            assert_same([x[n : n + 1] for x in state_tensors(final)], state_tensors(state))


@pytest.mark.parametrize("memory", MEMORIES)
def test_update_is_one_token(memory: str) -> None:
    inputs = make_inputs(length=8, window=3)
    weights = make_weights(memory, degree=2)
    options = {"degree": 2, "chunk_size": 3, "ns_steps": 1, "ns_every": 2}
    o, final = omega_rule(*inputs, weights=weights, output_final_state=True, **options)
    shape = {"window": 3, "key_dim": 4, "value_dim": 4, "momentum": True}
    state = OmegaState.init(weights, num_sequences=2, **shape)
    slotted = OmegaState.init(weights, num_sequences=4, **shape)
    addresses = [x.data_ptr() for x in state_tensors(state)]
    slots = torch.tensor([3, 1], dtype=torch.int32)
    for t in range(8):
        token = [x[:, t] for x in inputs]
        assert_same(omega_rule_update(*token, state=state, **options), o[:, t])
        read = omega_rule_update(*token, state=slotted, state_indices=slots, **options)
        assert_same(read, o[:, t])
    assert_same(state, final)
    assert addresses == [x.data_ptr() for x in state_tensors(state)]
    assert_same([x[slots.long()] for x in state_tensors(slotted)], state_tensors(final))
    assert slotted.position.tolist() == [0, 8, 0, 8]


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("rule", [omega_rule, chunked_omega_rule])
def test_causality(rule: object, memory: str) -> None:
    """No output changes in any bit when later inputs do, with equal T."""
    inputs = make_inputs(length=9)
    weights = make_weights(memory)
    options = {"weights": weights, "chunk_size": 4, "ns_steps": 1, "ns_every": 2}
    o, _ = rule(*inputs, **options)
    for t in range(1, 9):
        changed = Inputs(
            *(
                torch.cat([x[:, :t], y[:, t:]], dim=1)
                for x, y in zip(inputs, make_inputs(length=9, seed=9), strict=True)
            )
        )
        later, _ = rule(*changed, **options)
        assert torch.equal(later[:, :t], o[:, :t])
        assert not torch.equal(later[:, t], o[:, t])


def test_gradients() -> None:
    """Gradients to every input and every floating tensor of the state, also in mid-chunk."""
    inputs = make_inputs(batch=1, length=4, heads=1, key_dim=2, value_dim=2, window=3)
    weights = make_weights("mlp", heads=1, key_dim=2, value_dim=2, hidden=2, degree=2)
    options = {"chunk_size": 3, "degree": 2, "residual": True, "output_final_state": True}
    _, state = omega_rule(*inputs.tokens(0, 2), weights=weights, **options)
    scales = torch.tensor([1.0, 0.9, 0.6], dtype=torch.float64)
    floating = [x for x in state_tensors(state) if x.is_floating_point()]
    leaves = [x.clone().requires_grad_() for x in (*inputs, scales, *floating)]

    def call(*tensors: Tensor) -> tuple[Tensor, ...]:
        w1, w2, s1, s2, r1, r2, k_tail, v_tail = tensors[8:]
        entering = OmegaState((w1, w2), (s1, s2), (r1, r2), k_tail, v_tail, state.position)
        o, final = omega_rule(
            *tensors[:7], feature_scales=tensors[7], initial_state=entering, **options
        )
        return (o, *(x for x in state_tensors(final) if x.is_floating_point()))

    assert torch.autograd.gradcheck(call, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype) -> None:
    inputs = make_inputs()
    narrow = Inputs(*(x.to(dtype) for x in inputs[:3]), *(x.float() for x in inputs[3:]))
    weights = tuple(w.to(dtype) for w in make_weights("gated_mlp"))
    options = {"chunk_size": 4, "output_final_state": True}
    o, state = omega_rule(*narrow, weights=weights, **options)
    assert o.dtype == dtype
    assert state.k_tail.dtype == state.v_tail.dtype == dtype
    assert {w.dtype for w in (*state.weights, *state.momentum, *state.chunk_weights)} == {
        torch.float32
    }
    wide, _ = omega_rule(
        *(x.double() for x in narrow), weights=tuple(w.double() for w in weights), chunk_size=4
    )
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]
    assert (o.double() - wide).norm() <= tolerance * wide.norm()
