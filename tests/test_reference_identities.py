"""The named models the Omega rule reduces to, each against its own recurrence or closed form."""

from __future__ import annotations

import pytest
import torch
from reference_inputs import Inputs, assert_same, make_inputs, make_weights
from torch import Tensor

from atlas_ext.reference import chunked_omega_rule, newton_schulz, omega_rule, poly_features

RULES = [omega_rule, chunked_omega_rule]


def plain(window: int = 1, **sizes: int) -> Inputs:
    """Inputs with gamma = eta = 1, no retention, no momentum."""
    inputs = make_inputs(window=window, momentum=False, **sizes)
    ones = torch.ones_like(inputs.eta)
    gates = torch.ones_like(inputs.gamma)
    return inputs._replace(gamma=gates, eta=ones, log_alpha=None)


def attention(
    scores: Tensor,  # [B, H, T, T]
    log_alpha: Tensor,  # [B, T, H]
    v: Tensor,  # [B, T, H, V]
) -> Tensor:
    """Linear attention in closed form: sum_{i<=t} (alpha_{i+1} ... alpha_t) scores[t, i] v_i."""
    sums = log_alpha.transpose(1, 2).cumsum(dim=-1)
    decay = (sums[..., :, None] - sums[..., None, :]).tril().exp().tril()
    return torch.einsum("bhti,bihv->bthv", scores * decay, v)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("degree", [None, 2])
def test_linear_attention(rule: object, degree: int | None) -> None:
    """Hebbian, window 1, M_0 = 0: M += v phi(k)ᵀ, for any chunk size; with alpha it is gated."""
    zero = tuple(torch.zeros_like(w) for w in make_weights("linear", degree=degree))
    for gated in (False, True):
        inputs = plain()
        if gated:
            inputs = inputs._replace(log_alpha=make_inputs().log_alpha)
        lift = (lambda x: x) if degree is None else (lambda x: poly_features(x, 2))
        scores = torch.einsum("bthd,bihd->bhti", lift(inputs.q), lift(inputs.k))
        decays = inputs.log_alpha if gated else torch.zeros_like(inputs.eta)
        expected = attention(scores, decays, inputs.v)
        for chunk_size in (1, 4, 64):
            o, _ = rule(
                *inputs, weights=zero, objective="dot", degree=degree, chunk_size=chunk_size
            )
            assert_same(o, expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("degree", [None, 2])
def test_gated_delta_rule(rule: object, degree: int | None) -> None:
    """OmegaNet with window 1 and a linear memory, and DeltaNet: l2, C = 1."""
    inputs = make_inputs(window=1, momentum=False)
    (weight,) = make_weights("linear", degree=degree)
    x, u = inputs.k, inputs.q
    if degree is not None:
        x, u = poly_features(x, degree), poly_features(u, degree)
    for retention in (inputs.log_alpha, torch.zeros_like(inputs.eta)):
        memory = weight.expand(2, *weight.shape)
        expected = []
        for t in range(inputs.q.shape[1]):
            error = torch.einsum("bhvd,bhd->bhv", memory, x[:, t]) - inputs.v[:, t]
            write = torch.einsum("bhv,bhd->bhvd", error, x[:, t])
            step = (inputs.eta[:, t] * inputs.gamma[:, t, :, 0])[..., None, None]
            memory = retention[:, t, :, None, None].exp() * memory - step * write
            expected.append(torch.einsum("bhvd,bhd->bhv", memory, u[:, t]))
        given = inputs._replace(log_alpha=retention)
        o, _ = rule(*given, weights=(weight,), degree=degree, chunk_size=1)
        assert_same(o, torch.stack(expected, dim=1))


@pytest.mark.parametrize("rule", RULES)
def test_titans_with_its_step_inside_the_momentum(rule: object) -> None:
    """S = theta S - step grad, M = alpha M + S is gamma = step, eta = 1; window 1, no Muon."""
    inputs = make_inputs(window=1)
    inputs = inputs._replace(eta=torch.ones_like(inputs.eta))
    weights = make_weights("mlp")
    o, _ = rule(*inputs, weights=weights, chunk_size=1)
    for b, h in ((0, 0), (1, 1)):
        memory = [w[h] for w in weights]
        momentum = [torch.zeros_like(w) for w in memory]
        for t in range(inputs.q.shape[1]):
            leaves = [w.detach().requires_grad_() for w in memory]
            y = leaves[1] @ torch.nn.functional.gelu(leaves[0] @ inputs.k[b, t, h])
            loss = 0.5 * (y - inputs.v[b, t, h]).square().sum()
            theta, alpha = inputs.log_theta[b, t, h].exp(), inputs.log_alpha[b, t, h].exp()
            gradients = torch.autograd.grad(loss, leaves)
            step = inputs.gamma[b, t, h, 0]
            momentum = [theta * s - step * g for s, g in zip(momentum, gradients, strict=True)]
            memory = [alpha * w + s for w, s in zip(memory, momentum, strict=True)]
            y = memory[1] @ torch.nn.functional.gelu(memory[0] @ inputs.q[b, t, h])
            assert_same(o[b, t, h], y)


@pytest.mark.parametrize("rule", RULES)
def test_a_window_of_which_one_gate_is_open(rule: object) -> None:
    """Gates closed beyond offset 0 make every window the window 1 (Atlas without Muon: Titans)."""
    inputs = make_inputs(window=4)
    gates = torch.cat([inputs.gamma[..., :1], torch.zeros_like(inputs.gamma[..., 1:])], dim=-1)
    weights = make_weights("gated_mlp", degree=2)
    wide, _ = rule(*inputs._replace(gamma=gates), weights=weights, chunk_size=3, degree=2)
    inputs = inputs._replace(gamma=inputs.gamma[..., :1])
    narrow, _ = rule(*inputs, weights=weights, chunk_size=3, degree=2)
    assert_same(wide, narrow)


@pytest.mark.parametrize("rule", RULES)
def test_hebbian_window_is_a_moving_sum_of_writes(rule: object) -> None:
    """SWLA without gates writes each pair W times: M_t = sum_i min(W, t-i+1) v_i k_iᵀ."""
    inputs = plain(window=3)
    zero = (torch.zeros_like(make_weights("linear")[0]),)
    length = inputs.q.shape[1]
    ages = torch.arange(length)[:, None] - torch.arange(length) + 1
    counts = ages.clamp(min=0, max=3).double()
    scores = torch.einsum("bthd,bihd->bhti", inputs.q, inputs.k) * counts
    expected = torch.einsum("bhti,bihv->bthv", scores, inputs.v)
    assert_same(rule(*inputs, weights=zero, objective="dot", chunk_size=4)[0], expected)


@pytest.mark.parametrize("objective", ["l2", "dot"])
def test_deep_memories_reduce_to_smaller_ones(objective: str) -> None:
    """Within one chunk, where no matrix has moved from the point of its gradients.

    The first layer of an MLP with identity activation and W2 = 1 is the linear memory; a gated
    MLP whose gate is one (W3 reads phi's constant) is the MLP.
    """
    inputs = make_inputs()
    options = {"objective": objective, "degree": 2, "output_final_state": True}
    (first,) = make_weights("linear", degree=2)
    unit = torch.eye(4, dtype=torch.float64).expand(2, 4, 4)
    _, small = omega_rule(*inputs, weights=(first,), **options)
    _, large = omega_rule(*inputs, weights=(first, unit), activation="identity", **options)
    assert_same(large.weights[0], small.weights[0])
    assert_same(large.momentum[0], small.momentum[0])

    first, second = make_weights("mlp", degree=2)
    gate = torch.zeros_like(first)
    gate[..., 0] = 1
    _, small = omega_rule(*inputs, weights=(first, second), **options)
    _, large = omega_rule(*inputs, weights=(first, gate, second), **options)
    for index, other in ((0, 0), (2, 1)):
        assert_same(large.weights[index], small.weights[other])
        assert_same(large.momentum[index], small.momentum[other])


def test_residual_memory_of_zeros_is_the_query() -> None:
    inputs = make_inputs()._replace(eta=torch.zeros(2, 11, 2, dtype=torch.float64))
    o, _ = omega_rule(*inputs, weights=(*make_weights("mlp")[:1], torch.zeros(2, 4, 5).double()),
                      residual=True)  # fmt: skip
    assert_same(o, inputs.q)


def test_least_squares_limit() -> None:
    """A window over all pairs, descended to rest, gives the least-squares memory."""
    pairs, length = 7, 700
    order = torch.arange(length) % pairs
    k, v = torch.randn(2, pairs, 4, dtype=torch.float64)
    step = 1 / torch.linalg.eigvalsh(k.T @ k).max()
    ones = torch.ones(1, length, 1, dtype=torch.float64)
    _, state = omega_rule(
        k[order][None, :, None],
        k[order][None, :, None],
        v[order][None, :, None],
        ones[..., None].expand(1, length, 1, pairs),
        step * ones,
        weights=(torch.zeros(1, 4, 4, dtype=torch.float64),),
        chunk_size=1,
        output_final_state=True,
    )
    assert_same(state.weights[0][0, 0], torch.linalg.lstsq(k, v).solution.T, 1e-6)


def test_muon_writes_are_orthogonal_and_free_of_scale() -> None:
    """With Newton-Schulz the write is NS of the momentum: its size does not depend on v's."""
    inputs = make_inputs(length=1, window=1)
    zero = (torch.zeros(2, 4, 4, dtype=torch.float64),)
    options = {"weights": zero, "ns_steps": 5, "output_final_state": True}
    _, one = omega_rule(*inputs, **options)
    _, large = omega_rule(*inputs._replace(v=1000 * inputs.v), **options)
    assert_same(one.weights[0], large.weights[0], 1e-6)
    expected = -inputs.eta[:, 0, :, None, None] * newton_schulz(one.momentum[0])
    assert_same(one.weights[0], expected)
