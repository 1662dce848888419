"""Carrying a state from window to window: exact gradients until it is detached."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import atlas_ext
from atlas_ext.models import Atlas, AtlasCache, AtlasConfig

B, T, H, K, V, W = 2, 24, 2, 4, 4, 5
OPTIONS = {"chunk_size": 6, "ns_steps": 2, "ns_every": 4}
SPLITS = [7, 5, 12]  # bounds inside chunks
State = atlas_ext.OmegaState


def make_inputs() -> list[torch.Tensor]:
    """q, k, v, gamma, eta, log_alpha, log_theta and M_0, float64, all with gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64) - 0.3

    q, k = F.normalize(draw(2, B, T, H, K), dim=-1).unbind()
    gates = [draw(B, T, H, W) + 0.3, draw(B, T, H) / 4 + 0.2, -draw(B, T, H) - 0.4]
    inputs = [q, k, draw(B, T, H, V), *gates, -draw(B, T, H) - 0.5, draw(H, V, K)]
    return [tensor.detach().requires_grad_() for tensor in inputs]


def windows(inputs: list[torch.Tensor], between: Callable[[State], State]) -> torch.Tensor:
    """The output [B, T, H, V], window by window."""
    *tokens, memory = inputs
    state, outputs = None, []
    for piece in zip(*(tensor.split(SPLITS, dim=1) for tensor in tokens), strict=True):
        weights = (memory,) if state is None else None
        o, state = atlas_ext.omega_rule(
            *piece, weights=weights, initial_state=state, output_final_state=True, **OPTIONS
        )
        state = between(state)
        outputs.append(o)
    return torch.cat(outputs, 1)


def test_gradients_are_the_full_ones_when_nothing_is_detached() -> None:
    results = []
    for carried in (False, True):
        inputs = make_inputs()
        if carried:
            o = windows(inputs, lambda state: state)
        else:
            o, _ = atlas_ext.omega_rule(*inputs[:-1], weights=(inputs[-1],), **OPTIONS)
        o.sin().sum().backward()
        results.append([o.detach(), *(tensor.grad for tensor in inputs)])
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-10, atol=1e-12)


def test_a_detached_state_cuts_the_gradient_and_nothing_else() -> None:
    inputs = make_inputs()
    o = windows(inputs, State.detach)
    whole, _ = atlas_ext.omega_rule(*inputs[:-1], weights=(inputs[-1],), **OPTIONS)
    torch.testing.assert_close(o, whole, rtol=1e-10, atol=1e-12)
    o[:, SPLITS[0] :].sum().backward()
    *tokens, memory = inputs
    assert not memory.grad.any()
    for tensor in tokens:
        assert not tensor.grad[:, : SPLITS[0]].any() and tensor.grad[:, SPLITS[0] :].any()


def test_map_keeps_what_is_not_there() -> None:
    state = State.init((torch.ones(H, V, K),), num_sequences=B, window=W, key_dim=K, value_dim=V)
    doubled = state.map(lambda tensor: tensor * 2)
    assert doubled.momentum is None and (doubled.weights[0] == 2).all()
    assert [tensor.shape for tensor in doubled.weights] == [tensor.shape for tensor in state[0]]


@pytest.mark.parametrize("every", [1, 2])
def test_truncation_of_a_model(every: int) -> None:
    """Backward after every so many windows: the gradients of each group alone."""
    torch.manual_seed(0)
    size = {"vocab_size": 31, "hidden_size": 16, "num_layers": 2, "num_heads": 2}
    model = Atlas(AtlasConfig(**size, window=4, chunk_size=4, ns_every=4)).double()
    pieces = torch.randint(31, (2, 32)).split(8, dim=1)

    cache, total = AtlasCache(), 0.0
    for index, piece in enumerate(pieces):
        total = total + model(piece, labels=piece, cache=cache).loss
        if (index + 1) % every == 0:
            total.backward()
            cache.detach()
            total = 0.0
    gradients = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    for start in range(0, len(pieces), every):
        with torch.no_grad():
            seen = torch.cat([pieces[0][:, :0], *pieces[:start]], 1)
            cache = model(seen, use_cache=True).cache if start else AtlasCache()
        group = torch.cat(pieces[start : start + every], 1)
        logits = model(group, cache=cache).logits
        for scores, piece in zip(logits.split(8, dim=1), group.split(8, dim=1), strict=True):
            F.cross_entropy(scores[:, :-1].flatten(0, 1), piece[:, 1:].flatten()).backward(
                retain_graph=True
            )
    for parameter, expected in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-9)
