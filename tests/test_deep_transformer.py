"""DeepTransformer, SWDT and Dot: layers, models, caches that grow."""

from __future__ import annotations

import model_checks as checks
import pytest
import torch
import torch.nn.functional as F

from atlas_ext.layers import ExpOmegaMemory, MemoryState, OmegaMemory
from atlas_ext.models import AtlasConfig, DeepTransformer
from atlas_ext.models.sizes import parameter_count, state_bytes

WINDOW = {"window": 3, "chunk_size": 4}
SMALL = {"vocab_size": checks.VOCAB, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
MODELS = {
    "deep_transformer": {"variant": "deep_transformer", "chunk_size": 4},
    "linear": {"variant": "deep_transformer", "memory": "linear", "normalize": "softmax"},
    "swdt": {"variant": "swdt", "normalize": "rms", **WINDOW},
    "dot": {"variant": "dot", **WINDOW},
    "dot_linear": {"variant": "dot", "memory": "linear", **WINDOW},
    "dot_gated": {"variant": "dot", "memory": "gated_mlp", "normalize": "softmax", **WINDOW},
}
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def make_model(name: str, **overrides: object) -> DeepTransformer:
    torch.manual_seed(0)
    return DeepTransformer(AtlasConfig(**(SMALL | MODELS[name] | overrides)))


@EVERY_MODEL
def test_trains(name: str) -> None:
    checks.check_training_step(make_model(name))


@EVERY_MODEL
def test_pieces_equal_one_pass(name: str) -> None:
    checks.check_pieces(make_model(name), (1, 5))


@EVERY_MODEL
def test_packed_equals_separate(name: str) -> None:
    checks.check_packed(make_model(name))


@EVERY_MODEL
def test_causal_to_the_bit(name: str) -> None:
    checks.check_causal(make_model(name))


@EVERY_MODEL
def test_saved_and_loaded(name: str) -> None:
    checks.check_saved(make_model(name))


@EVERY_MODEL
def test_generates(name: str) -> None:
    checks.check_generation(make_model(name))


@EVERY_MODEL
def test_autocast(name: str) -> None:
    checks.check_autocast(make_model(name))


def test_a_linear_memory_with_softmax_is_attention() -> None:
    """Gates shut but for the write: the layer is softmax attention between its projections."""
    torch.manual_seed(0)
    layer = ExpOmegaMemory(16, 2, memory="linear", normalize="softmax", retention=False)
    torch.nn.init.zeros_(layer.gates.weight)  # gamma and eta the same for all tokens
    layer.q_scale.data.fill_(2.0)
    x = torch.randn(2, 9, 16)
    qkv, _ = layer.qkv_conv(layer.qkv_proj(x))
    q, k, v = qkv.reshape(2, 9, 3, 2, 8).transpose(1, 3).unbind(2)
    q, k = 2 * F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)
    # what all values are multiplied by: the gate of the write, and a step of 1
    attended = 0.95 * layer.step_size * attended.transpose(1, 2)
    y = layer.norm(attended).flatten(2) * F.silu(layer.output_gate(x))
    torch.testing.assert_close(layer(x)[0], layer.out_proj(y), rtol=1e-4, atol=1e-5)


def test_dot_with_a_linear_memory_is_the_transformer_with_the_delta_rule() -> None:
    """W = 1, C = 1: b_t = step (v_t - M_{t-1}(k_t)), read as sum_j b_j exp(k_j·q)."""
    torch.manual_seed(0)
    layer = ExpOmegaMemory(
        16, 2, memory="linear", objective="l2", retention=False, chunk_size=1, step_size=0.2
    )
    torch.nn.init.zeros_(layer.gates.weight)
    x = torch.randn(1, 7, 16)
    qkv, _ = layer.qkv_conv(layer.qkv_proj(x))
    q, k, v = qkv.reshape(7, 3, 2, 8).permute(1, 2, 0, 3)  # [H, T, K]
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    rows = torch.zeros(2, 0, 8)
    outputs = []
    for t in range(7):
        kernel = (k[:, t : t + 1] @ k[:, :t].mT).exp()
        row = 0.2 * 0.95 * (v[:, t : t + 1] - kernel @ rows)
        rows = torch.cat([rows, row], 1)
        outputs.append((q[:, t : t + 1] @ k[:, : t + 1].mT).exp() @ rows)
    o = torch.cat(outputs, 1).transpose(0, 1)[None]
    y = layer.norm(o).flatten(2) * F.silu(layer.output_gate(x))
    torch.testing.assert_close(layer(x)[0], layer.out_proj(y), rtol=1e-4, atol=1e-5)


def test_gates_of_the_first_token_alone_are_those_of_a_window_of_one() -> None:
    """SWDT whose gates beyond offset 0 are shut is DeepTransformer."""
    torch.manual_seed(0)
    wide, narrow = (ExpOmegaMemory(16, 2, window=w, chunk_size=3) for w in (3, 1))
    state = wide.state_dict()
    for name in ("gates.weight", "gates.bias"):
        gamma, rest = state[name].split([6, 4])
        gamma = gamma.reshape(2, 3, *gamma.shape[1:])
        gamma[:, 1:] = 0.0 if name == "gates.weight" else -100.0
        state[name] = torch.cat([gamma.flatten(0, 1), rest])
    wide.load_state_dict(state)
    for name in ("gates.weight", "gates.bias"):
        gamma, rest = state[name].split([6, 4])
        state[name] = torch.cat([gamma[::3], rest])
    narrow.load_state_dict(state)
    x = torch.randn(2, 8, 16)
    torch.testing.assert_close(wide(x)[0], narrow(x)[0], rtol=1e-4, atol=1e-5)


def test_the_cache_grows_like_that_of_a_transformer() -> None:
    model = make_model("dot")
    sizes = []
    with torch.no_grad():
        for length in (8, 16, 32):
            cache = model(checks.tokens(length=length), use_cache=True).cache
            sizes.append(cache.num_bytes)
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0]) > 0
    with pytest.raises(ValueError, match=r"state_bytes: config\.variant: wanted .* got 'dot'"):
        state_bytes(model.config)
    assert parameter_count(model.config) == sum(p.numel() for p in model.parameters())


def test_states_of_other_layers_are_refused() -> None:
    exponential, omega = ExpOmegaMemory(16, 2), OmegaMemory(16, 2)
    x = torch.randn(1, 3, 16)
    for layer, other in ((exponential, omega), (omega, exponential)):
        _, state = other(x, return_state=True)
        name = type(layer).__name__
        with pytest.raises(ValueError, match=rf"{name}: state\.memory: wanted an .*State, got"):
            layer(x, state)
    assert isinstance(state, MemoryState)


def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for recompute in (False, True):
        model = make_model("dot_gated", activation_checkpointing=recompute)
        model(checks.tokens(), labels=checks.tokens()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("size", ["tiny", "170m", "340m", "760m", "1.3b"])
@pytest.mark.parametrize("variant", ["deep_transformer", "swdt", "dot"])
def test_presets(variant: str, size: str) -> None:
    config = AtlasConfig.preset(f"{variant}-{size}", vocab_size=32)
    assert config.head_dim == 64 and config.num_heads * 64 == config.hidden_size
    with torch.device("meta"):
        DeepTransformer(AtlasConfig.preset(f"{variant}-{size}", num_layers=1))


@pytest.mark.parametrize("variant", ["deep_transformer", "swdt", "dot"])
@pytest.mark.parametrize("memory", ["linear", "mlp", "gated_mlp"])
def test_a_text_of_one_token_does_not_diverge(variant: str, memory: str) -> None:
    """All gradients of a chunk point the same way, and every kernel is at its largest."""
    torch.manual_seed(0)
    options = SMALL | {"chunk_size": 16, "num_layers": 2}
    model = DeepTransformer(AtlasConfig(variant=variant, memory=memory, **options))
    with torch.no_grad():
        logits = model(torch.zeros(1, 192, dtype=torch.long)).logits
    assert torch.isfinite(logits).all()
    assert (logits[:, -1] - logits[:, 40]).norm() < logits[:, 40].norm()


@pytest.mark.parametrize("name", ["deep_transformer", "dot_linear", "dot_gated"])
def test_blocks_compile(name: str) -> None:
    """fullgraph: outputs, gradients, and a token from the state."""
    torch.compiler.reset()
    block = make_model(name).blocks[0]
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    x = torch.randn(2, 12, 16)
    results = []
    for function in (block, compiled):
        block.zero_grad()
        y, state = function(x, None, None, True)
        y.square().sum().backward()
        with torch.no_grad():
            step, _ = function(x[:, :1], state.map(torch.Tensor.detach), None, True)
        results.append([y, step, *(p.grad for p in block.parameters())])
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-4, atol=1e-5)
