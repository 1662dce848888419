"""The named models reduce to what the table in docs/models.md says: layers against recurrences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from model_checks import VOCAB, tokens
from torch import Tensor, nn

from atlas_ext.layers import MemoryAsGate, OmegaMemory, SlidingWindowAttention
from atlas_ext.models import Atlas, AtlasConfig

HIDDEN, HEADS, WIDTH, LENGTH = 16, 2, 8, 9
CLOSE = {"rtol": 2e-4, "atol": 2e-5}


def make_layer(**options: object) -> OmegaMemory:
    torch.manual_seed(0)
    layer = OmegaMemory(HIDDEN, HEADS, **options)
    with torch.no_grad():  # gates that differ between tokens
        nn.init.normal_(layer.gates.weight, std=0.5)
    return layer


def inner(layer: OmegaMemory, x: Tensor) -> dict[str, Tensor]:
    """q, k, v [B, T, H, K], the step eta gamma of offset 0, and alpha, theta [B, T, H]."""
    qkv, _ = layer.qkv_conv(layer.qkv_proj(x))
    q, k, v = qkv.reshape(*x.shape[:2], 3, HEADS, WIDTH).unbind(2)
    gamma, eta, log_alpha, log_theta = layer.compute_gates(x)
    one = torch.zeros_like(eta)
    return {
        "q": F.normalize(q, dim=-1) * layer.q_scale[:, None],
        "k": F.normalize(k, dim=-1) * layer.k_scale[:, None],
        "v": v,
        "gamma": gamma,
        "step": eta * gamma[..., 0],
        "alpha": (one if log_alpha is None else log_alpha).exp(),
        "theta": (one if log_theta is None else log_theta).exp(),
    }


def finish(layer: OmegaMemory, o: Tensor, x: Tensor) -> Tensor:
    return layer.out_proj(layer.norm(o).flatten(2) * F.silu(layer.output_gate(x)))


def gated_linear_attention(layer: OmegaMemory, x: Tensor) -> Tensor:
    """M_t = alpha_t M_{t-1} + eta_t v_t k_tᵀ, y_t = M_t q_t."""
    t = inner(layer, x)
    memory = layer.memory_weights[0].expand(x.shape[0], HEADS, WIDTH, WIDTH)
    outputs = []
    for i in range(x.shape[1]):
        write = torch.einsum("bhv,bhk->bhvk", t["v"][:, i], t["k"][:, i])
        memory = t["alpha"][:, i, :, None, None] * memory
        memory = memory + t["step"][:, i, :, None, None] * write
        outputs.append(torch.einsum("bhvk,bhk->bhv", memory, t["q"][:, i]))
    return finish(layer, torch.stack(outputs, 1), x)


def gated_delta_rule(layer: OmegaMemory, x: Tensor) -> Tensor:
    """M_t = alpha_t M_{t-1} - eta_t (M_{t-1} k_t - v_t) k_tᵀ."""
    t = inner(layer, x)
    memory = layer.memory_weights[0].expand(x.shape[0], HEADS, WIDTH, WIDTH)
    outputs = []
    for i in range(x.shape[1]):
        error = torch.einsum("bhvk,bhk->bhv", memory, t["k"][:, i]) - t["v"][:, i]
        write = torch.einsum("bhv,bhk->bhvk", error, t["k"][:, i])
        memory = t["alpha"][:, i, :, None, None] * memory
        memory = memory - t["step"][:, i, :, None, None] * write
        outputs.append(torch.einsum("bhvk,bhk->bhv", memory, t["q"][:, i]))
    return finish(layer, torch.stack(outputs, 1), x)


def test_linear_attention_is_a_sum_of_outer_products() -> None:
    options = {"objective": "dot", "window": 1, "momentum": False, "retention": False}
    layer, x = make_layer(**options), torch.randn(2, LENGTH, HIDDEN)
    torch.testing.assert_close(layer(x)[0], gated_linear_attention(layer, x), **CLOSE)


@pytest.mark.parametrize("chunk_size", [1, 4, 64])
def test_swla_of_one_token_is_gated_linear_attention(chunk_size: int) -> None:
    """For any chunk size: the dot loss's gradient does not depend on the memory."""
    layer = make_layer(objective="dot", window=1, momentum=False, chunk_size=chunk_size)
    x = torch.randn(2, LENGTH, HIDDEN)
    torch.testing.assert_close(layer(x)[0], gated_linear_attention(layer, x), **CLOSE)


@pytest.mark.parametrize("retention", [False, True])
def test_omeganet_of_one_token_is_the_gated_delta_rule(retention: bool) -> None:
    """And, without alpha, DeltaNet."""
    layer = make_layer(window=1, momentum=False, retention=retention, chunk_size=1, step_size=0.5)
    x = torch.randn(2, LENGTH, HIDDEN)
    torch.testing.assert_close(layer(x)[0], gated_delta_rule(layer, x), **CLOSE)


def titans(layer: OmegaMemory, x: Tensor) -> Tensor:
    """S_t = theta_t S_{t-1} + gamma_t grad l(M_{t-1}), M_t = alpha_t M_{t-1} - eta_t S_t; gradients
    of the memory as a network, by autograd."""
    t = inner(layer, x)
    eta = layer.compute_gates(x)[1]
    outputs = torch.zeros(x.shape[0], x.shape[1], HEADS, WIDTH)
    for b in range(x.shape[0]):
        for h in range(HEADS):
            memory = [w[h].detach() for w in layer.memory_weights]
            momentum = [torch.zeros_like(w) for w in memory]

            def read(weights: list[Tensor], u: Tensor) -> Tensor:
                return u + weights[1] @ F.gelu(weights[0] @ u)

            for i in range(x.shape[1]):
                leaves = [w.requires_grad_() for w in memory]
                loss = 0.5 * (read(leaves, t["k"][b, i, h]) - t["v"][b, i, h]).square().sum()
                gradients = torch.autograd.grad(loss, leaves)
                with torch.no_grad():
                    theta, gamma = t["theta"][b, i, h], t["gamma"][b, i, h, 0]
                    momentum = [
                        theta * s + gamma * g for s, g in zip(momentum, gradients, strict=True)
                    ]
                    alpha, step = t["alpha"][b, i, h], eta[b, i, h]
                    memory = [alpha * w - step * s for w, s in zip(memory, momentum, strict=True)]
                    outputs[b, i, h] = read(memory, t["q"][b, i, h])
    return finish(layer, outputs, x)


def test_titans_descends_with_momentum() -> None:
    layer = make_layer(memory="mlp", window=1, chunk_size=1, step_size=0.3)
    x = torch.randn(2, 6, HIDDEN)
    torch.testing.assert_close(layer(x)[0], titans(layer, x), **CLOSE)


def models(first: dict, second: dict) -> tuple[Atlas, Atlas]:
    """Two models with the same parameters."""
    small = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_layers": 1, "num_heads": HEADS}
    torch.manual_seed(0)
    one, other = (Atlas(AtlasConfig(**small, **options)) for options in (first, second))
    nn.init.normal_(one.blocks[0].memory.gates.weight, std=0.5)
    other.load_state_dict(one.state_dict())
    return one, other


def test_atlas_without_muon_and_window_is_titans() -> None:
    """Newton-Schulz = identity is ns_steps = 0; without it, a map and a window: Titans, exactly."""
    atlas = {"variant": "atlas", "ns_steps": 0, "window": 1, "degree": None, "step_size": 0.02}
    one, other = models(atlas, {"variant": "titans", "step_size": 0.02})
    assert torch.equal(one(tokens()).logits, other(tokens()).logits)


def test_atlas_without_muon_and_momentum_is_omeganet() -> None:
    """theta = 0: the gate of the momentum shut."""
    options = {"window": 3, "chunk_size": 4, "step_size": 0.02}
    torch.manual_seed(0)
    atlas = OmegaMemory(HIDDEN, HEADS, memory="mlp", degree=2, **options)
    omeganet = OmegaMemory(HIDDEN, HEADS, memory="mlp", degree=2, momentum=False, **options)
    state = atlas.state_dict()
    for name in ("gates.weight", "gates.bias"):
        state[name][-HEADS:] = 0.0 if name == "gates.weight" else -100.0
    atlas.load_state_dict(state)
    omeganet.load_state_dict(
        state | {name: state[name][:-HEADS] for name in ("gates.weight", "gates.bias")}
    )
    x = torch.randn(2, LENGTH, HIDDEN)
    torch.testing.assert_close(atlas(x)[0], omeganet(x)[0], **CLOSE)


def test_omeganet_of_one_linear_token_is_delta() -> None:
    """The configurations make the same model."""
    options = {"memory": "linear", "degree": None, "window": 1, "chunk_size": 1}
    omeganet = {"variant": "omeganet", "step_size": 0.5, **options}
    one, other = models(omeganet, {"variant": "delta", "retention": True, "step_size": 0.5})
    assert torch.equal(one(tokens()).logits, other(tokens()).logits)


def test_dla_with_a_linear_memory_is_swla_of_one_token() -> None:
    dla = {"variant": "dla", "memory": "linear", "step_size": 0.5}
    swla = {"variant": "swla", "window": 1, "degree": 2, "step_size": 0.5}
    one, other = models(dla, swla)
    assert torch.equal(one(tokens()).logits, other(tokens()).logits)


def test_atlas_plus_plus_with_an_open_gate_is_atlas() -> None:
    """A gate W3 that reads phi's constant 1 alone; before a write, and nothing fades."""
    layers = [
        make_layer(memory=memory, degree=2, ns_steps=5, ns_every=16, retention=False)
        for memory in ("mlp", "gated_mlp")
    ]
    with torch.no_grad():
        first, last = layers[0].memory_weights
        gate = torch.zeros_like(first)
        gate[..., 0] = 1.0
        for target, value in zip(layers[1].memory_weights, (first, gate, last), strict=True):
            target.copy_(value)
    state = layers[0].state_dict()
    shared = {name: t for name, t in state.items() if not name.startswith("memory_weights")}
    layers[1].load_state_dict(shared, strict=False)
    x = torch.randn(2, LENGTH, HIDDEN)  # shorter than ns_every
    torch.testing.assert_close(layers[1](x)[0], layers[0](x)[0], **CLOSE)


def test_mag_with_a_gate_at_rest_is_attention() -> None:
    """Where the memory's norm has a vector of zeros the gate is 1/2 for every token."""
    torch.manual_seed(0)
    attention = SlidingWindowAttention(HIDDEN, HEADS, window=4)
    layer = MemoryAsGate(OmegaMemory(HIDDEN, HEADS), attention, HIDDEN)
    nn.init.zeros_(layer.product.memory_norm.weight)
    x = torch.randn(2, LENGTH, HIDDEN)
    expected = 0.5 * layer.product.attention_norm(attention(x)[0])
    torch.testing.assert_close(layer(x)[0], expected)


def test_mal_without_a_memory_is_a_transformer_block() -> None:
    torch.manual_seed(0)
    block = Atlas(AtlasConfig(vocab_size=9, hybrid="mal", num_layers=1, hidden_size=32)).blocks[0]
    nn.init.zeros_(block.memory.out_proj.weight)
    x = torch.randn(2, LENGTH, 32)
    y = x + block.attention(block.attention_norm(x))[0]
    torch.testing.assert_close(block(x)[0], y + block.mlp(block.mlp_norm(y)))
