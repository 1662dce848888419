"""The Omega rule: a loop written out here, the named models, causality, extremes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas_ext import omega_rule, poly_features, reference
from atlas_ext.testing import (
    linear_weights,
    named_tensors,
    omega_tensors,
    relative_error,
    require_grad,
)

MUON = (3.4445, -4.7750, 2.0315)


def make(B: int = 2, T: int = 10, seed: int = 0, **sizes: Any) -> dict[str, Any]:
    """Inputs in float64 of a linear memory without a feature map."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"H": 2, "K": 4, "V": 3, "W": 3, **sizes}
    inputs = omega_tensors(generator, (B, T), **sizes)
    inputs["weights"] = linear_weights(generator, sizes["H"], V=sizes["V"], D=sizes["K"])
    return inputs


def orthogonalise(s: Tensor, steps: int) -> Tensor:
    x = s / (s.norm() + 1e-7)
    for _ in range(steps):
        a, b, c = MUON
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def by_hand(
    inputs: dict[str, Any],
    b: int,
    h: int,
    C: int,
    dot: bool = False,
    steps: int = 0,
    every: int = 1,
) -> Tensor:
    """One sequence and head, token by token, as the definition reads."""
    q, k, v, gamma, eta = (inputs[name][b, :, h] for name in ("q", "k", "v", "gamma", "eta"))
    M = inputs["weights"][0][h]
    S = torch.zeros_like(M)
    outputs = []
    for t in range(q.shape[0]):
        if t % C == 0:
            M_ref = M
        G = torch.zeros_like(M)
        for j in range(gamma.shape[-1]):
            if t - j >= 0:
                error = -v[t - j] if dot else M_ref @ k[t - j] - v[t - j]
                G = G + gamma[t, j] * torch.outer(error, k[t - j])
        theta = inputs["log_theta"][b, t, h].exp() if "log_theta" in inputs else 0.0
        alpha = inputs["log_alpha"][b, t, h].exp() if "log_alpha" in inputs else 1.0
        S = theta * S + G
        M = alpha * M
        if steps == 0:
            M = M - eta[t] * S
        elif t % every == every - 1:
            M = M - eta[t] * orthogonalise(S, steps)
        outputs.append(M @ q[t])
    return torch.stack(outputs)


@pytest.mark.parametrize("theta", [False, True])
@pytest.mark.parametrize("dot", [False, True])
@pytest.mark.parametrize("C, W", [(1, 1), (1, 4), (3, 1), (3, 2), (4, 4), (3, 8), (16, 3), (10, 5)])
def test_equals_the_loop_written_out(C: int, W: int, dot: bool, theta: bool) -> None:
    inputs = make(W=W, theta=theta, alpha=C != 4)
    out, state = omega_rule(**inputs, chunk_size=C, objective="dot" if dot else "l2")
    assert state is None
    for b in range(2):
        for h in range(2):
            assert relative_error(out[b, :, h], by_hand(inputs, b, h, C, dot)) < 1e-12


@pytest.mark.parametrize("every", [1, 2, 3, 5])
def test_muon_equals_the_loop_written_out(every: int) -> None:
    inputs = make(W=4, theta=True)
    out, _ = omega_rule(**inputs, chunk_size=5, ns_steps=5, ns_every=every)
    for b in range(2):
        for h in range(2):
            wanted = by_hand(inputs, b, h, 5, steps=5, every=every)
            assert relative_error(out[b, :, h], wanted) < 1e-9


def test_features_equal_lifted_keys() -> None:
    inputs = make(K=3, theta=True)
    inputs["weights"] = linear_weights(torch.Generator().manual_seed(5), 2, V=3, D=10)
    inputs["feature_scales"] = torch.tensor([0.8, 1.1, 0.5], dtype=torch.float64)
    out, _ = omega_rule(**inputs, degree=2, chunk_size=4)
    scales = inputs.pop("feature_scales")
    lifted = {name: poly_features(inputs[name], 2, scales) for name in ("q", "k")}
    wanted, _ = omega_rule(**{**inputs, **lifted}, chunk_size=4)
    assert relative_error(out, wanted) < 1e-12


def test_hebbian_is_linear_attention() -> None:
    inputs = make(W=1, alpha=False)
    inputs["gamma"] = torch.ones_like(inputs["gamma"])
    inputs["eta"] = torch.ones_like(inputs["eta"])
    inputs["weights"] = (torch.zeros(2, 3, 4, dtype=torch.float64),)
    out, _ = omega_rule(**inputs, objective="dot", chunk_size=4)
    scores = torch.einsum("bthk,bshk->bhts", inputs["q"], inputs["k"]).tril()
    assert relative_error(out, torch.einsum("bhts,bshv->bthv", scores, inputs["v"])) < 1e-12


def test_sliding_window_linear_attention() -> None:
    """With window gates of one, each value is written once by each of the next W tokens."""
    W, T = 3, 8
    inputs = make(B=1, T=T, W=W, alpha=False)
    inputs["gamma"] = torch.ones_like(inputs["gamma"])
    inputs["eta"] = torch.ones_like(inputs["eta"])
    inputs["weights"] = (torch.zeros(2, 3, 4, dtype=torch.float64),)
    out, _ = omega_rule(**inputs, objective="dot", chunk_size=4)
    t, s = torch.arange(T)[:, None], torch.arange(T)[None]
    counts = (t - s + 1).clamp(0, W).double()
    scores = torch.einsum("bthk,bshk->bhts", inputs["q"], inputs["k"]) * counts
    assert relative_error(out, torch.einsum("bhts,bshv->bthv", scores, inputs["v"])) < 1e-12


def test_delta_rule_reads_back_what_it_wrote() -> None:
    inputs = make(W=1, alpha=False)
    inputs["gamma"] = torch.ones_like(inputs["gamma"])
    inputs["eta"] = torch.ones_like(inputs["eta"])
    out, _ = omega_rule(**{**inputs, "q": inputs["k"]}, chunk_size=1)
    assert relative_error(out, inputs["v"]) < 1e-12


def test_the_chunk_does_not_matter_to_the_dot_objective() -> None:
    inputs = make(T=13, W=4, theta=True)
    wanted, _ = omega_rule(**inputs, objective="dot", chunk_size=1)
    for C in (2, 5, 13, 64):
        out, _ = omega_rule(**inputs, objective="dot", chunk_size=C)
        assert relative_error(out, wanted) < 1e-12, C


def test_the_chunk_matters_to_the_l2_objective() -> None:
    inputs = make(T=13)
    outs = [omega_rule(**inputs, chunk_size=C)[0] for C in (1, 2, 5)]
    assert relative_error(outs[0], outs[1]) > 1e-3 and relative_error(outs[1], outs[2]) > 1e-3


def test_step_inside_the_momentum() -> None:
    """gamma = step, eta = 1 is S = theta S - step grad, M = alpha M + S (Titans)."""
    inputs = make(B=1, T=6, H=1, W=1, theta=True)
    step = inputs["gamma"][0, :, 0, 0]
    inputs["eta"] = torch.ones_like(inputs["eta"])
    out, _ = omega_rule(**inputs, chunk_size=1)
    M = inputs["weights"][0][0]
    S = torch.zeros_like(M)
    for t in range(6):
        q, k, v = (inputs[name][0, t, 0] for name in "qkv")
        S = inputs["log_theta"][0, t, 0].exp() * S - step[t] * torch.outer(M @ k - v, k)
        M = inputs["log_alpha"][0, t, 0].exp() * M + S
        assert relative_error(out[0, t, 0], M @ q) < 1e-12


def test_ns_every_without_ns_is_ignored() -> None:
    inputs = make()
    assert torch.equal(omega_rule(**inputs, ns_every=3)[0], omega_rule(**inputs)[0])


def test_ns_scale_multiplies_the_step() -> None:
    inputs = make(B=1, W=5, theta=True)
    for scale, factor in (("rms", 0.2 * math.sqrt(4)), ("shape", 1.0)):
        out, _ = omega_rule(**inputs, ns_steps=3, ns_scale=scale)
        wanted, _ = omega_rule(**{**inputs, "eta": factor * inputs["eta"]}, ns_steps=3)
        assert relative_error(out, wanted) < 1e-9, scale


@pytest.mark.parametrize(
    "options", [{"chunk_size": 4}, {"ns_steps": 2, "ns_every": 2}, {"degree": 2}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causality_is_bitwise(options: dict[str, Any], dtype: torch.dtype) -> None:
    T = 11
    inputs = make(T=T, W=4, theta=True)
    if "degree" in options:
        inputs["weights"] = linear_weights(torch.Generator().manual_seed(5), 2, V=3, D=15)
    inputs = {n: t.to(dtype) if n in "qkv" else t for n, t in named_tensors(inputs).items()}
    weights = (inputs.pop("weights.0").float(),)
    inputs = {n: t if n in "qkv" else t.float() for n, t in inputs.items()}
    before, _ = omega_rule(**inputs, weights=weights, **options)
    for cut in range(1, T):
        for name, tensor in inputs.items():
            changed = tensor.clone()
            changed[:, cut:] = 0.5 * changed[:, cut:] - 0.3
            after, _ = omega_rule(**{**inputs, name: changed}, weights=weights, **options)
            assert torch.equal(after[:, :cut], before[:, :cut]), (name, cut)
            if cut < T - 1:  # a last token that does not write shows no change of its gates
                assert not torch.equal(after[:, cut:], before[:, cut:]), (name, cut)


def test_gates_of_slots_before_the_start_do_nothing() -> None:
    inputs = make(T=5, W=4, theta=True)
    wanted, _ = omega_rule(**inputs)
    before_start = torch.arange(4)[None] > torch.arange(5)[:, None]  # [T, W]
    gamma = inputs["gamma"].masked_fill(before_start[None, :, None], 1e6).requires_grad_()
    out, _ = omega_rule(**{**inputs, "gamma": gamma})
    assert torch.equal(out, wanted)
    (grad,) = torch.autograd.grad(out.sum(), gamma)
    assert not grad.masked_select(before_start[None, :, None]).any()


@pytest.mark.parametrize("W", [6, 500])
def test_feature_map_does_not_leak_through_empty_slots(W: int) -> None:
    """phi(0) has a constant term: slots before the start are masked, not merely zero."""
    inputs = make(T=4, W=W, K=3)
    inputs["weights"] = linear_weights(torch.Generator().manual_seed(5), 2, V=3, D=10)
    out, _ = omega_rule(**inputs, degree=2)
    inputs["gamma"] = inputs["gamma"][..., :4]
    assert relative_error(out, omega_rule(**inputs, degree=2)[0]) < 1e-12


def test_a_chunk_larger_than_the_sequence_costs_nothing() -> None:
    inputs = make(T=7)
    assert torch.equal(
        omega_rule(**inputs, chunk_size=2**40)[0], omega_rule(**inputs, chunk_size=7)[0]
    )


@pytest.mark.parametrize("value", [-math.inf, -1e4, -80.0, 0.0])
@pytest.mark.parametrize("name", ["log_alpha", "log_theta"])
@pytest.mark.parametrize("ns_steps", [0, 2])
def test_extreme_decays(name: str, value: float, ns_steps: int) -> None:
    """Complete forgetting at some tokens, values and gradients; no NaN from -inf minus -inf."""
    inputs = make(T=9, W=4, theta=True)
    inputs[name] = inputs[name].clone()
    inputs[name][:, [0, 3, 4, 8]] = value
    if ns_steps:
        inputs["weights"] = linear_weights(torch.Generator().manual_seed(5), 2, V=3, D=4)
    names = list(named_tensors(inputs))
    options = {"chunk_size": 4, "ns_steps": ns_steps}
    results = []
    for function in (omega_rule, reference.omega_rule):
        leaves = require_grad(inputs, names)
        out, _ = function(**leaves, **options)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        grads = torch.autograd.grad((out * weight).sum(), list(named_tensors(leaves).values()))
        results.append({"o": out, **dict(zip(names, grads, strict=True))})
    for key, wanted in results[1].items():
        assert relative_error(results[0][key], wanted) < 1e-9, key


def test_gates_outside_their_ranges() -> None:
    inputs = make(B=1, W=3, theta=True)
    inputs["gamma"] = 3 * inputs["gamma"] - 2
    inputs["eta"] = 0.2 - inputs["eta"]
    out, _ = omega_rule(**inputs, chunk_size=3)
    assert relative_error(out[0, :, 0], by_hand(inputs, 0, 0, 3)) < 1e-12


@pytest.mark.parametrize("magnitude", [1e-15, 1e15])
def test_magnitudes_of_values(magnitude: float) -> None:
    inputs = make(theta=True)
    inputs["v"] = inputs["v"] * magnitude
    inputs["weights"] = tuple(w * magnitude for w in inputs["weights"])
    single = {n: t.float() for n, t in named_tensors(inputs).items() if "weights" not in n}
    out, _ = omega_rule(**single, weights=tuple(w.float() for w in inputs["weights"]))
    assert relative_error(out, omega_rule(**inputs)[0]) < 2e-5


def test_a_long_sequence_stays_accurate() -> None:
    inputs = make(B=1, T=1500, K=16, V=16, W=8, theta=True)
    single = {n: t.float() for n, t in named_tensors(inputs).items() if "weights" not in n}
    wanted, _ = omega_rule(**{n: t.double() for n, t in single.items()}, weights=inputs["weights"])
    out, _ = omega_rule(**single, weights=tuple(w.float() for w in inputs["weights"]))
    assert relative_error(out, wanted) < 2e-5
