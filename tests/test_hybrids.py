"""Atlas with attention: every variant with each hybrid."""

from __future__ import annotations

import model_checks as checks
import pytest
import torch

from atlas_ext.layers import AtlasBlock, GatedProduct, MemoryAsContext, OmegaMemory
from atlas_ext.layers.memory_read import read_memory
from atlas_ext.models import Atlas, AtlasConfig
from atlas_ext.models.sizes import state_bytes

WINDOW = {"window": 3, "chunk_size": 4}
# attention window and segment of 5: chunks, windows and segments end at different tokens
SMALL = {
    "vocab_size": checks.VOCAB, "hidden_size": 16, "num_layers": 1, "num_heads": 2,
    "swa_window": 5, "swa_heads": 2,
}  # fmt: skip
VARIANTS = {
    "linear_attention": {"chunk_size": 4},
    "delta": {},
    "titans": {"chunk_size": 4},
    "dla": {"chunk_size": 4},
    "swla": WINDOW,
    "omeganet": WINDOW,
    "atlas": {"ns_every": 3, **WINDOW},
    "atlas++": {"ns_every": 3, **WINDOW},
}
HYBRIDS = ("mag", "mal", "mac")
EVERY_MODEL = pytest.mark.parametrize("variant", VARIANTS)
EVERY_HYBRID = pytest.mark.parametrize("hybrid", HYBRIDS)


def make_model(variant: str, hybrid: str, **overrides: object) -> Atlas:
    torch.manual_seed(0)
    options = SMALL | VARIANTS[variant] | overrides
    return Atlas(AtlasConfig(variant=variant, hybrid=hybrid, **options))


@EVERY_HYBRID
@EVERY_MODEL
def test_trains(variant: str, hybrid: str) -> None:
    checks.check_training_step(make_model(variant, hybrid))


@EVERY_HYBRID
@EVERY_MODEL
def test_pieces_equal_one_pass(variant: str, hybrid: str) -> None:
    checks.check_pieces(make_model(variant, hybrid), (1, 5, 7))


@EVERY_HYBRID
@EVERY_MODEL
def test_packed_equals_separate(variant: str, hybrid: str) -> None:
    checks.check_packed(make_model(variant, hybrid))


@EVERY_HYBRID
@EVERY_MODEL
def test_causal_to_the_bit(variant: str, hybrid: str) -> None:
    checks.check_causal(make_model(variant, hybrid))


@EVERY_HYBRID
@EVERY_MODEL
def test_saved_and_loaded(variant: str, hybrid: str) -> None:
    checks.check_saved(make_model(variant, hybrid))


@EVERY_HYBRID
@EVERY_MODEL
def test_generates(variant: str, hybrid: str) -> None:
    checks.check_generation(make_model(variant, hybrid))


@EVERY_HYBRID
@EVERY_MODEL
def test_autocast(variant: str, hybrid: str) -> None:
    checks.check_autocast(make_model(variant, hybrid))


@EVERY_HYBRID
@EVERY_MODEL
def test_parameters_in_bfloat16(variant: str, hybrid: str) -> None:
    out = make_model(variant, hybrid).bfloat16()(checks.tokens(), labels=checks.tokens())
    assert out.logits.dtype == torch.bfloat16 and torch.isfinite(out.loss)


@EVERY_HYBRID
@pytest.mark.parametrize("variant", ["swla", "atlas++"])
def test_state_bytes_are_those_of_a_cache(variant: str, hybrid: str) -> None:
    """The same at the first token and at the thirtieth: the state does not grow."""
    model = make_model(variant, hybrid, num_layers=2)
    with torch.no_grad():
        for length in (1, 30):
            cache = model(checks.tokens(length=length), use_cache=True).cache
            assert cache.num_bytes == 2 * state_bytes(model.config)


@EVERY_HYBRID
def test_decoding_keeps_its_tensors(hybrid: str) -> None:
    """One token without gradients is written into the cache's own memory."""
    model = make_model("atlas", hybrid)
    with torch.no_grad():
        cache = model(checks.tokens(length=3), use_cache=True).cache
        before = {name: t.data_ptr() for name, t in cache.state_dict().items()}
        for t in range(8):
            model(checks.tokens(length=1, seed=t), cache=cache)
    assert {name: t.data_ptr() for name, t in cache.state_dict().items()} == before


@EVERY_HYBRID
def test_gradients_cross_a_cache(hybrid: str) -> None:
    """Also one token at a time."""
    model = make_model("omeganet", hybrid)
    ids = checks.tokens()
    gradients = []
    for lengths in ([checks.LENGTH], [4, 1, 7, 1, 1]):
        model.zero_grad()
        cache = None
        logits = []
        for piece in ids.split(lengths, dim=1):
            out = model(piece, cache=cache, use_cache=True)
            cache = out.cache
            logits.append(out.logits)
        torch.cat(logits, 1).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_a_piece_of_one_token_leaves_the_given_state_alone() -> None:
    """A call of several tokens may end with a segment of one: nothing is updated in place then."""
    block = make_model("omeganet", "mac").blocks[0]
    x = torch.randn(2, 9, 16)
    with torch.no_grad():
        _, state = block(x[:, :4], None, None, True)
        before = state.map(torch.clone).tensors()
        first, _ = block(x[:, 4:6], state, None, True)
        again, _ = block(x[:, 4:6], state, None, True)
    assert torch.equal(first, again)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())


def test_product_normalises_both_and_gates_with_the_memory() -> None:
    product = GatedProduct(8)
    torch.nn.init.normal_(product.attention_norm.weight)
    torch.nn.init.normal_(product.memory_norm.weight)
    attention, memory = torch.randn(2, 3, 5, 8)

    def normalised(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    expected = normalised(attention, product.attention_norm.weight)
    expected = expected * torch.sigmoid(normalised(memory, product.memory_norm.weight))
    torch.testing.assert_close(product(attention, memory), expected)
    torch.testing.assert_close(product(7 * attention, 3 * memory), expected)


@pytest.mark.parametrize("memory", ["linear", "mlp", "gated_mlp"])
@pytest.mark.parametrize("degree", [None, 2])
def test_read_is_the_rule_without_a_write(memory: str, degree: int | None) -> None:
    layer = OmegaMemory(16, 2, memory=memory, degree=degree, momentum=False, step_size=0.0)
    layer.window, layer.retention = 1, False
    q = torch.randn(2, 6, 2, 8)
    weights = tuple(torch.randn(2, *w.shape) * w.std() for w in layer.memory_weights)
    rule = torch.zeros(2, 6, 2, 1), torch.zeros(2, 6, 2), None, None
    given = torch.nn.ParameterList([torch.nn.Parameter(w) for w in weights])
    layer.memory_weights = given
    o, _ = layer._rule(q, q, q, rule, torch.zeros(2, 3, 48), None, None, False)
    torch.testing.assert_close(read_memory(layer, weights, q), o, rtol=1e-4, atol=1e-5)


def test_a_segment_sees_the_memory_as_it_was_at_its_start() -> None:
    """Tokens of the first segment read M_0 alone, whatever the memory learns meanwhile."""
    torch.manual_seed(0)
    memory = OmegaMemory(16, 2, window=1, momentum=False, chunk_size=1, step_size=0.5)
    layer = MemoryAsContext(memory, 16, 2, segment=4)
    seen = []
    layer.out_proj.register_forward_hook(lambda _module, _inputs, y: seen.append(y.detach()))
    x = torch.randn(1, 8, 16)
    layer(x)
    memory.step_size = 0.0
    layer(x)
    first, second, frozen_first, frozen_second = seen
    assert torch.equal(first, frozen_first)
    assert not torch.allclose(second, frozen_second)


def test_mal_is_memory_then_attention() -> None:
    block = make_model("swla", "mal").blocks[0]
    x = torch.randn(2, 6, 16)
    y = x + block.memory(block.memory_norm(x))[0]
    y = y + block.attention(block.attention_norm(y))[0]
    y = y + block.mlp(block.mlp_norm(y))
    assert torch.equal(block(x)[0], y)
    with pytest.raises(ValueError, match="AtlasBlock: state: wanted a ParallelState, got Memory"):
        block(x, block.memory(x, None, None, True)[1])


@pytest.mark.parametrize("segment", [0, -1])
def test_segments_have_tokens(segment: int) -> None:
    with pytest.raises(ValueError, match=f"MemoryAsContext: segment: wanted .* got {segment}"):
        MemoryAsContext(OmegaMemory(16, 2), 16, 2, segment=segment)
    with pytest.raises(ValueError, match=r"hidden_size // num_heads: wanted an even .* got 1"):
        MemoryAsContext(OmegaMemory(16, 2), 16, 16)


@EVERY_HYBRID
def test_presets_take_a_hybrid(hybrid: str) -> None:
    config = AtlasConfig.preset("atlas-170m", hybrid=hybrid)
    assert (config.swa_window, config.swa_heads) == (512, 12)
    with torch.device("meta"):
        model = Atlas(AtlasConfig.preset("atlas-170m", hybrid=hybrid, num_layers=1))
    assert isinstance(model.blocks[0], AtlasBlock)
