"""Deep memories: the definition by autograd, identities that hold exactly, zero matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas_ext import omega_rule, poly_features, reference
from atlas_ext.testing import (
    map_tensors,
    memory_weights,
    named_tensors,
    omega_state,
    omega_tensors,
    relative_error,
    require_grad,
)

MUON = (3.4445, -4.7750, 2.0315)
MEMORIES = ("mlp", "gated_mlp")
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "identity": lambda z: z,
}
each_memory = pytest.mark.parametrize("memory", MEMORIES)


def make(
    memory: str = "mlp", B: int = 2, T: int = 10, seed: int = 0, D: int = 0, **sizes: Any
) -> dict[str, Any]:
    """Inputs in float64; D other than K for keys that a feature map lifts."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"H": 2, "K": 4, "V": 3, "W": 3, "F": 6, **sizes}
    F = sizes.pop("F")
    inputs = omega_tensors(generator, (B, T), **sizes)
    shape = {"V": sizes["V"], "D": D or sizes["K"], "F": F}
    inputs["weights"] = memory_weights(generator, sizes["H"], **shape, memory=memory)
    return inputs


def evaluate(
    weights: list[Tensor], x: Tensor, activation: str, raw: Tensor | None = None
) -> Tensor:
    """M(x), docs/math/omega_rule.md, eq. (1)."""
    hidden = ACTIVATIONS[activation](weights[0] @ x)
    if len(weights) == 3:
        hidden = hidden * (weights[1] @ x)
    y = weights[-1] @ hidden
    return y if raw is None else raw + y


def orthogonalise(s: Tensor, steps: int) -> Tensor:
    x = s / (s.norm() + 1e-7)
    a, b, c = MUON
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def by_hand(
    inputs: dict[str, Any],
    b: int,
    h: int,
    C: int,
    *,
    objective: str = "l2",
    activation: str = "gelu",
    residual: bool = False,
    steps: int = 0,
    every: int = 1,
) -> Tensor:
    """One sequence and head, token by token; autograd finds the inner gradient."""
    q, k, v, gamma, eta = (inputs[name][b, :, h] for name in ("q", "k", "v", "gamma", "eta"))
    M = [w[h] for w in inputs["weights"]]
    S = [torch.zeros_like(w) for w in M]
    outputs = []
    for t in range(q.shape[0]):
        if t % C == 0:
            at = M if M[0].requires_grad else [w.detach().requires_grad_() for w in M]
        loss = torch.zeros((), dtype=q.dtype)
        for j in range(min(gamma.shape[-1], t + 1)):
            key, value = k[t - j], v[t - j]
            y = evaluate(at, key, activation, key if residual else None)
            inner = -(y @ value) if objective == "dot" else 0.5 * (y - value).square().sum()
            loss = loss + gamma[t, j] * inner
        G = torch.autograd.grad(loss, at, create_graph=M[0].requires_grad)
        theta = inputs["log_theta"][b, t, h].exp() if "log_theta" in inputs else 0.0
        alpha = inputs["log_alpha"][b, t, h].exp() if "log_alpha" in inputs else 1.0
        S = [theta * s + g for s, g in zip(S, G, strict=True)]
        M = [alpha * w for w in M]
        if steps == 0 or t % every == every - 1:
            O = [orthogonalise(s, steps) if steps else s for s in S]
            M = [w - eta[t] * o for w, o in zip(M, O, strict=True)]
        outputs.append(evaluate(M, q[t], activation, q[t] if residual else None))
    return torch.stack(outputs)


def assert_by_hand(out: Tensor, inputs: dict[str, Any], C: int, bound: float, **how: Any) -> None:
    for b in range(out.shape[0]):
        for h in range(out.shape[2]):
            assert relative_error(out[b, :, h], by_hand(inputs, b, h, C, **how)) < bound, (b, h)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("objective", ["l2", "dot"])
@each_memory
def test_equals_the_loop_by_autograd(
    memory: str, objective: str, activation: str, residual: bool
) -> None:
    inputs = make(memory, V=4 if residual else 3, theta=True)
    options = {"objective": objective, "activation": activation, "residual": residual}
    out, state = omega_rule(**inputs, chunk_size=4, **options)
    assert state is None
    assert_by_hand(out, inputs, 4, 1e-11, **options)


@pytest.mark.parametrize("C, W", [(1, 1), (1, 4), (3, 1), (3, 2), (4, 4), (3, 8), (16, 3), (10, 5)])
@each_memory
def test_chunks_and_windows_equal_the_loop(memory: str, C: int, W: int) -> None:
    inputs = make(memory, W=W, theta=C != 3, alpha=C != 4)
    assert_by_hand(omega_rule(**inputs, chunk_size=C)[0], inputs, C, 1e-11)


@pytest.mark.parametrize("every", [1, 2, 3, 5])
@pytest.mark.parametrize("F", [2, 6, 16])
@each_memory
def test_muon_equals_the_loop(memory: str, F: int, every: int) -> None:
    """F below V, between, and 4K: every matrix orthogonalised on its own, tall or wide."""
    inputs = make(memory, B=1, W=4, F=F, theta=every != 2)
    out, _ = omega_rule(**inputs, chunk_size=5, ns_steps=5, ns_every=every)
    assert_by_hand(out, inputs, 5, 1e-9, steps=5, every=every)


@pytest.mark.parametrize("steps", [0, 3])
@each_memory
def test_gradients_equal_those_of_the_loop(memory: str, steps: int) -> None:
    """Second order: the loop is differentiated through its inner gradient."""
    inputs = make(memory, B=1, T=6, H=1, V=4, theta=True)
    names = list(named_tensors(inputs))
    results = []
    for ours in (True, False):
        leaves = require_grad(inputs, names)
        if ours:
            out = omega_rule(**leaves, chunk_size=3, residual=True, ns_steps=steps)[0][0, :, 0]
        else:
            out = by_hand(leaves, 0, 0, 3, residual=True, steps=steps)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
        results.append(torch.autograd.grad((out * weight).sum(), named_tensors(leaves).values()))
    for name, actual, wanted in zip(names, *results, strict=True):
        assert relative_error(actual, wanted) < 1e-9, name


@pytest.mark.parametrize("residual", [False, True])
def test_atlas_without_muon_and_window_is_titans(residual: bool) -> None:
    """S_t = theta S_{t-1} - step grad l(M_{t-1}; k_t, v_t), M_t = alpha M_{t-1} + S_t."""
    inputs = make(W=1, H=1, B=1, V=4, theta=True)
    step = inputs["gamma"][0, :, 0, 0]
    inputs["eta"] = torch.ones_like(inputs["eta"])
    out, _ = omega_rule(**inputs, chunk_size=1, residual=residual)
    M = [w[0] for w in inputs["weights"]]
    S = [torch.zeros_like(w) for w in M]
    for t in range(10):
        q, k, v = (inputs[name][0, t, 0] for name in "qkv")
        at = [w.detach().requires_grad_() for w in M]
        error = evaluate(at, k, "gelu", k if residual else None) - v
        grads = torch.autograd.grad(0.5 * error.square().sum(), at)
        theta, alpha = (inputs[name][0, t, 0].exp() for name in ("log_theta", "log_alpha"))
        S = [theta * s - step[t] * g for s, g in zip(S, grads, strict=True)]
        M = [alpha * w + s for w, s in zip(M, S, strict=True)]
        wanted = evaluate(M, q, "gelu", q if residual else None)
        assert relative_error(out[0, t, 0], wanted) < 1e-11, t


def per_head(weights: Tensor, x: Tensor) -> Tensor:  # [H, out, in], [B, T, H, in]
    return torch.einsum("hoi,bthi->btho", weights, x)


@pytest.mark.parametrize("options", [{}, {"ns_steps": 3, "ns_every": 2}], ids=["plain", "muon"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("objective", ["l2", "dot"])
@each_memory
def test_within_one_chunk_a_deep_memory_is_linear_memories_in_cascade(
    memory: str, objective: str, activation: str, options: dict[str, Any]
) -> None:
    """For T <= C every d_i is fixed by M_0: W1 (W3) is a linear memory that learns -d_i from x_i
    under the dot objective, W2 one that learns v_i from the hidden vectors of the keys."""
    inputs = make(memory, V=4, theta=True)
    options = {"chunk_size": 10, **options}
    q, k, v, weights = (inputs.pop(name) for name in ("q", "k", "v", "weights"))
    out, _ = omega_rule(
        q, k, v, **inputs, weights=weights, objective=objective, activation=activation, **options
    )
    act = ACTIVATIONS[activation]
    z = per_head(weights[0], k).requires_grad_()
    gate = per_head(weights[1], k) if len(weights) == 3 else torch.ones_like(z)
    gate = gate.detach().requires_grad_()
    hidden = act(z) * gate
    y = per_head(weights[-1], hidden)
    error = (y - v if objective == "l2" else -v).detach()
    d1, d3 = torch.autograd.grad(y, (z, gate), error)

    def learn(x: Tensor, target: Tensor, weight: Tensor, query: Tensor, kind: str) -> Tensor:
        rest = {**inputs, **options, "objective": kind}
        return omega_rule(query, x, target, weights=(weight,), **rest)[0]

    read = act(learn(k, -d1, weights[0], q, "dot"))
    if len(weights) == 3:
        read = read * learn(k, -d3, weights[1], q, "dot")
    wanted = learn(hidden.detach(), v, weights[-1], read, objective)
    assert relative_error(out, wanted) < (1e-9 if "ns_steps" in options else 1e-11)


@pytest.mark.parametrize("objective", ["l2", "dot"])
def test_identity_layers_reduce_to_the_linear_memory(objective: str) -> None:
    """W1 = I, W2 = 0, act = identity, T <= C: W2ᵀe = 0, so W1 only decays and W2 is the linear
    memory. In a second chunk W2 is no longer 0 and W1 moves."""
    inputs = make(theta=True)
    linear, _ = omega_rule(
        **{**inputs, "weights": (torch.zeros(2, 3, 4).double(),)}, objective=objective
    )
    eye = torch.eye(4).double().expand(2, 4, 4)
    inputs["weights"] = (eye, torch.zeros(2, 3, 4).double())
    options = {"objective": objective, "activation": "identity"}
    out, _ = omega_rule(**inputs, **options)
    decayed = inputs["log_alpha"].cumsum(1).exp()[..., None]
    assert relative_error(out, decayed * linear) < 1e-12
    assert relative_error(omega_rule(**inputs, chunk_size=5, **options)[0], decayed * linear) > 1e-3


def test_a_gate_of_one_leaves_the_mlp() -> None:
    """W3 phi(x) = 1 through phi's constant; W2 = 0 and T <= C keep it there (d3 = 0)."""
    inputs = make(K=3, D=10, alpha=False, theta=True)
    first, last = inputs["weights"][0], torch.zeros(2, 3, 6).double()
    gate = torch.zeros_like(first)
    gate[..., 0] = 1.0
    inputs["weights"] = (first, last)
    wanted, _ = omega_rule(**inputs, degree=2)
    inputs["weights"] = (first, gate, last)
    assert wanted.abs().max() > 0.1
    assert relative_error(omega_rule(**inputs, degree=2)[0], wanted) < 1e-12


@pytest.mark.parametrize("steps", [0, 3])
@each_memory
def test_features_equal_lifted_keys(memory: str, steps: int) -> None:
    inputs = make(memory, K=3, D=10, W=4, theta=True)
    scales = torch.tensor([0.8, 1.1, 0.5], dtype=torch.float64)
    options = {"chunk_size": 4, "ns_steps": steps}
    out, _ = omega_rule(**inputs, degree=2, feature_scales=scales, **options)
    lifted = {name: poly_features(inputs[name], 2, scales) for name in ("q", "k")}
    assert relative_error(out, omega_rule(**{**inputs, **lifted}, **options)[0]) < 1e-9


@each_memory
def test_without_a_step_the_memory_is_a_network(memory: str) -> None:
    inputs = make(memory, V=4, theta=True, alpha=False)
    inputs["eta"] = torch.zeros_like(inputs["eta"])
    out, _ = omega_rule(**inputs, activation="silu", residual=True, chunk_size=3)
    for h in range(2):
        weights = [w[h] for w in inputs["weights"]]
        rows = inputs["q"][:, :, h].flatten(0, 1)
        wanted = torch.stack([evaluate(weights, row, "silu", row) for row in rows])
        assert relative_error(out[:, :, h].flatten(0, 1), wanted) < 1e-12


@pytest.mark.parametrize(
    "options", [{"chunk_size": 4}, {"chunk_size": 4, "ns_steps": 2, "ns_every": 2}, {"degree": 2}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@each_memory
def test_causality_is_bitwise(memory: str, dtype: torch.dtype, options: dict[str, Any]) -> None:
    T = 11
    inputs = make(memory, T=T, V=4, W=4, theta=True, D=15 if "degree" in options else 4)
    weights = tuple(w.float() for w in inputs.pop("weights"))
    inputs = {n: t.to(dtype if n in "qkv" else torch.float32) for n, t in inputs.items()}
    options = {**options, "weights": weights, "residual": True}
    before, _ = omega_rule(**inputs, **options)
    for cut in range(1, T):
        for name, tensor in inputs.items():
            changed = tensor.clone()
            changed[:, cut:] = 0.5 * changed[:, cut:] - 0.3
            after, _ = omega_rule(**{**inputs, name: changed}, **options)
            assert torch.equal(after[:, :cut], before[:, :cut]), (name, cut)
            if cut < T - 1:  # a last token that does not write shows no change of its gates
                assert not torch.equal(after[:, cut:], before[:, cut:]), (name, cut)


# Newton-Schulz starts from a state: it wants a momentum that is well conditioned.
@pytest.mark.parametrize(
    "state, sizes, options",
    [
        (False, {"K": 1, "V": 1, "F": 1, "W": 1}, {"chunk_size": 2}),
        (False, {"K": 5, "V": 2, "F": 3, "W": 7}, {"chunk_size": 2, "objective": "dot"}),
        (True, {"K": 3, "V": 3, "F": 13, "W": 2}, {"chunk_size": 5, "residual": True, "degree": 2}),
        (True, {"K": 9, "V": 2, "F": 7, "W": 3}, {"chunk_size": 1, "activation": "silu"}),
        (True, {"K": 2, "V": 9, "F": 5, "W": 4}, {"chunk_size": 3, "ns_steps": 3, "ns_every": 2}),
        (True, {"K": 3, "V": 5, "F": 3, "W": 3}, {"ns_steps": 4, "ns_scale": "shape", "degree": 2}),
    ],
)
@each_memory
def test_gradcheck_at_odd_shapes(
    memory: str, state: bool, sizes: dict[str, int], options: dict[str, Any]
) -> None:
    K = sizes["K"]
    shape = {**sizes, "H": 1, "D": (K + 1) * (K + 2) // 2 if "degree" in options else K}
    inputs = make(memory, B=2, T=5, theta=state, **shape)
    if state:
        del inputs["weights"]
        generator = torch.Generator().manual_seed(2)
        begin = omega_state(generator, (1, 6), **shape, memory=memory, momentum=True)
        inputs["initial_state"] = begin
    found = named_tensors(inputs)
    names = [name for name, t in found.items() if t.is_floating_point() and t.numel()]

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        chosen = dict(zip(names, values, strict=True))
        given = map_tensors(lambda name, tensor: chosen.get(name, tensor), inputs)
        out, end = omega_rule(**given, **options, output_final_state=True)
        outputs = [out, *named_tensors(end).values()]
        return tuple(output for output in outputs if output.requires_grad)

    leaves = tuple(found[name].clone().requires_grad_() for name in names)
    assert torch.autograd.gradcheck(function, leaves, fast_mode=True, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("chunk_size", [4, 16])
@pytest.mark.parametrize("zero", ["first", "last", "all"])
@each_memory
def test_zero_matrices(memory: str, zero: str, chunk_size: int) -> None:
    """W2 = 0 makes the momentum of W1 exactly 0; Newton-Schulz and its gradient are 0 there."""
    inputs = make(memory, T=7, W=4, theta=True)
    chosen = {"first": [0], "last": [-1], "all": range(len(inputs["weights"]))}[zero]
    matrices = list(inputs["weights"])
    for index in chosen:
        matrices[index] = torch.zeros_like(matrices[index])
    inputs["weights"] = tuple(matrices)
    names = list(named_tensors(inputs))
    results = []
    for function in (omega_rule, reference.omega_rule):
        leaves = require_grad(inputs, names)
        out, end = function(
            **leaves, chunk_size=chunk_size, ns_steps=5, ns_every=2, output_final_state=True
        )
        outputs = {"o": out, **named_tensors(end)}
        loss = sum(t.sin().sum() for t in outputs.values() if t.is_floating_point())
        grads = torch.autograd.grad(loss, list(named_tensors(leaves).values()))
        results.append({**outputs, **{f"grad {n}": g for n, g in zip(names, grads, strict=True)}})
    if zero == "last" and chunk_size == 16:
        assert not results[0]["momentum.0"].any()
    for name, wanted in results[1].items():
        assert torch.isfinite(results[0][name]).all(), name
        assert relative_error(results[0][name], wanted) < 1e-9, name
