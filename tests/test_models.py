"""AtlasConfig, Atlas and AtlasCache."""

import math

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from model_checks import check_autocast

from atlas_ext.models import Atlas, AtlasCache, AtlasConfig

VOCAB, LENGTH = 61, 14
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
WINDOW = {"window": 6, "chunk_size": 4}
# linear memories, then deep ones
MODELS = {
    "linear_attention": {"variant": "linear_attention", "chunk_size": 4},
    "delta": {"variant": "delta"},
    "gated_delta": {"variant": "delta", "retention": True},
    "swla": {"variant": "swla", "degree": 2, **WINDOW},
    "omeganet": {"variant": "omeganet", "memory": "linear", **WINDOW},
    "titans": {"variant": "titans", "memory": "linear", "chunk_size": 4},
    "atlas": {"variant": "atlas", "memory": "linear", "ns_every": 4, **WINDOW},
    "titans_deep": {"variant": "titans", "chunk_size": 4},
    "dla_deep": {"variant": "dla", "chunk_size": 4},
    "omeganet_deep": {"variant": "omeganet", **WINDOW},
    "atlas_deep": {"variant": "atlas", "ns_every": 4, **WINDOW},
    "atlas++": {"variant": "atlas++", "ns_every": 4, "activation": "silu", **WINDOW},
}
# one of each number of memory matrices
MATRICES = pytest.mark.parametrize("name", ["atlas", "atlas_deep", "atlas++"])
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)


def make_model(name: str = "atlas", **overrides: object) -> Atlas:
    torch.manual_seed(0)
    return Atlas(AtlasConfig(**(SMALL | MODELS[name] | overrides)))


def tokens(batch: int = 2, length: int = LENGTH, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (batch, length), generator=generator)


CLOSE = {"rtol": 2e-3, "atol": 5e-4}


@EVERY_MODEL
def test_one_training_step(name: str) -> None:
    model = make_model(name)
    ids = tokens()
    out = model(ids, labels=ids)
    assert out.logits.shape == (2, LENGTH, VOCAB) and out.cache is None
    assert abs(out.loss.item() - math.log(VOCAB)) < 0.2
    out.loss.backward()
    for parameter_name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), parameter_name
    torch.optim.AdamW(model.parameters(), lr=1e-2).step()
    assert model(ids, labels=ids).loss < out.loss


@EVERY_MODEL
def test_prefill_equals_decode_at_every_split(name: str) -> None:
    model = make_model(name)
    ids = tokens()
    with torch.no_grad():
        whole = model(ids).logits
        for split in range(1, LENGTH):
            out = model(ids[:, :split], use_cache=True)
            rest = [model(ids[:, t : t + 1], cache=out.cache).logits for t in range(split, LENGTH)]
            torch.testing.assert_close(torch.cat([out.logits, *rest], 1), whole, **CLOSE)


@MATRICES
def test_a_cache_takes_pieces_of_any_length(name: str) -> None:
    model = make_model(name)
    ids = tokens()
    cache = AtlasCache()
    pieces = [model(piece, cache=cache).logits for piece in ids.split([1, 6, 1, 2, 4], dim=1)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(ids).logits, **CLOSE)
    assert cache.position.tolist() == [LENGTH, LENGTH]


@EVERY_MODEL
def test_packed_equals_separate(name: str) -> None:
    model = make_model(name)
    lengths = [6, 0, 1, 9]
    ids = tokens(1, sum(lengths))
    bounds = F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0), (1, 0))
    out = model(ids, labels=ids, cu_seqlens=bounds, use_cache=True)
    pieces = ids.split(lengths, dim=1)
    logits = [model(piece).logits for piece in pieces]
    torch.testing.assert_close(out.logits, torch.cat(logits, 1), **CLOSE)
    total = sum(
        F.cross_entropy(scores[0, :-1], piece[0, 1:], reduction="sum")
        for scores, piece in zip(logits, pieces, strict=True)
        if piece.shape[1] > 1
    )
    torch.testing.assert_close(out.loss, total / (5 + 8))
    further = tokens(1, 4, seed=2)
    packed = model(further, cache=out.cache, cu_seqlens=torch.tensor([0, 1, 2, 3, 4])).logits
    for i, piece in enumerate(pieces):
        alone = model(torch.cat([piece, further[:, i : i + 1]], 1)).logits[:, -1]
        torch.testing.assert_close(packed[:, i], alone, **CLOSE)


@EVERY_MODEL
def test_causal_to_the_bit(name: str) -> None:
    model = make_model(name)
    ids = tokens()
    with torch.no_grad():
        logits = model(ids).logits
        for t in (1, 4, LENGTH - 1):
            changed = torch.cat([ids[:, :t], tokens(seed=3)[:, t:]], 1)
            assert torch.equal(model(changed).logits[:, :t], logits[:, :t])


@EVERY_MODEL
def test_evaluation_mode_changes_nothing(name: str) -> None:
    model = make_model(name)
    ids = tokens()
    trained = model.train()(ids).logits
    assert torch.equal(model.eval()(ids).logits, trained)
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, trained)


def test_loss_ignores_labels_of_minus_100() -> None:
    model = make_model()
    ids = tokens()
    labels = ids.clone()
    labels[:, :6] = -100
    out = model(ids, labels=labels)
    expected = F.cross_entropy(out.logits[:, 5:-1].flatten(0, 1), ids[:, 6:].flatten())
    torch.testing.assert_close(out.loss, expected)
    assert model(ids, labels=torch.full_like(ids, -100)).loss == 0


@MATRICES
def test_generate_is_reproducible_and_of_constant_size(name: str) -> None:
    model = make_model(name)
    ids = tokens(length=5)

    def draw(seed: int, **options: object) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return model.generate(ids, max_new_tokens=7, generator=generator, **options)

    assert draw(0).shape == (2, 12)
    assert torch.equal(draw(0)[:, :5], ids)
    assert torch.equal(draw(0, top_k=9, top_p=0.9), draw(0, top_k=9, top_p=0.9))
    assert not torch.equal(draw(0), draw(1))
    assert torch.equal(draw(0, temperature=0), draw(1, temperature=0))
    assert torch.equal(draw(0, top_k=1), draw(0, temperature=0))
    assert torch.equal(draw(0, top_p=1e-9), draw(0, temperature=0))
    with torch.no_grad():
        cache = model(ids, use_cache=True).cache
        size = cache.num_bytes
        model(tokens(length=50), cache=cache)
        model(tokens(length=1), cache=cache)
    assert cache.num_bytes == size


@MATRICES
def test_greedy_generation_equals_repeated_forward(name: str) -> None:
    model = make_model(name)
    ids = tokens(length=5)
    generated = model.generate(ids, max_new_tokens=6, temperature=0)
    for _ in range(6):
        ids = torch.cat([ids, model(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(generated, ids)


def test_generation_stops_at_the_end_token() -> None:
    model = make_model()
    ids = tokens(batch=1, length=5)
    free = model.generate(ids, max_new_tokens=8, temperature=0)
    end = int(free[0, 6])
    stopped = model.generate(ids, max_new_tokens=8, temperature=0, eos_token_id=end)
    assert stopped[0, -1] == end and stopped.shape[1] <= 7
    assert torch.equal(stopped, free[:, : stopped.shape[1]])


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_k": 0}, {"top_p": 0.0}, {"max_new_tokens": -1}]
)
def test_generate_names_what_is_wrong(options: dict) -> None:
    ((name, _),) = options.items()
    with pytest.raises(ValueError, match=f"generate: {name}: wanted"):
        make_model().generate(tokens(), **({"max_new_tokens": 1} | options))


@MATRICES
def test_a_cloned_cache_is_independent(name: str) -> None:
    model = make_model(name)
    with torch.no_grad():
        cache = model(tokens(), use_cache=True).cache
        twin = cache.clone()
        first = model(tokens(length=1), cache=cache).logits
        assert twin.position.tolist() == [LENGTH, LENGTH]
        assert torch.equal(model(tokens(length=1), cache=twin).logits, first)
    assert twin.to("cpu") is twin


@MATRICES
def test_a_cache_survives_a_file(tmp_path, name: str) -> None:
    model = make_model(name)
    with torch.no_grad():
        cache = model(tokens(), use_cache=True).cache
        safetensors.torch.save_file(cache.state_dict(), tmp_path / "cache.safetensors")
        restored = AtlasCache()
        restored.load_state_dict(safetensors.torch.load_file(tmp_path / "cache.safetensors"))
        step = tokens(length=1)
        assert torch.equal(model(step, cache=restored).logits, model(step, cache=cache).logits)
    for bad in ({"nonsense": torch.zeros(1)}, {"layers.1.conv": torch.zeros(1)}):
        with pytest.raises(ValueError, match="AtlasCache: state_dict: wanted"):
            AtlasCache().load_state_dict(bad)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_a_model_survives_a_file(tmp_path, tie_embeddings: bool) -> None:
    model = make_model(tie_embeddings=tie_embeddings)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    twin = Atlas(AtlasConfig(**model.config.to_dict()))
    twin.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(twin(tokens()).logits, model(tokens()).logits)
    assert ("lm_head.weight" in model.state_dict()) != tie_embeddings


def test_parameter_names_are_stable() -> None:
    names = [name for name, _ in make_model().named_parameters()]
    memory = [
        "q_scale", "k_scale", "feature_scales", "qkv_proj.weight", "qkv_conv.weight",
        "gates.weight", "gates.bias", "memory_weights.0", "norm.weight", "output_gate.weight",
        "out_proj.weight",
    ]  # fmt: skip
    block = [
        "memory_norm.weight", *[f"memory.{name}" for name in memory],
        "mlp_norm.weight", "mlp.gate_up_proj.weight", "mlp.down_proj.weight",
    ]  # fmt: skip
    blocks = [f"blocks.{i}.{name}" for i in range(2) for name in block]
    assert sorted(names) == sorted(["embedding.weight", *blocks, "norm.weight", "lm_head.weight"])


@MATRICES
def test_activation_checkpointing_changes_no_gradient(name: str) -> None:
    gradients = []
    for recompute in (False, True):
        model = make_model(name, activation_checkpointing=recompute)
        model(tokens(), labels=tokens()).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


@MATRICES
def test_activation_checkpointing_keeps_the_cache_right(name: str) -> None:
    """Recomputing a block must neither advance the cache again nor start from a later state."""
    results = []
    for recompute in (False, True):
        model = make_model(name, activation_checkpointing=recompute)
        cache = AtlasCache()
        losses = [model(piece, labels=piece, cache=cache).loss for piece in tokens().split(7, 1)]
        sum(losses).backward()
        with torch.no_grad():  # one token, in place
            step = model(tokens(length=1), cache=cache).logits
        results.append([step, *cache.state_dict().values(), *(p.grad for p in model.parameters())])
    for first, second in zip(*results, strict=True):
        torch.testing.assert_close(first, second, **CLOSE)
    assert cache.position.tolist() == [LENGTH + 1] * 2


@pytest.mark.parametrize("name", ["omeganet", "omeganet_deep", "titans_deep"])
def test_gradients_cross_a_cache(name: str) -> None:
    model = make_model(name)
    ids = tokens()
    model(ids, labels=ids).loss.backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    cache = AtlasCache()
    logits = torch.cat([model(piece, cache=cache).logits for piece in ids.split(7, dim=1)], 1)
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    for parameter, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-3, atol=1e-5)
    assert not cache.detach().layers[0].conv.requires_grad


@MATRICES
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype, name: str) -> None:
    model = make_model(name).to(dtype)
    out = model(tokens(), labels=tokens())
    assert out.logits.dtype == dtype
    assert out.loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.isfinite(out.loss)


@EVERY_MODEL
def test_autocast(name: str) -> None:
    check_autocast(make_model(name))


@pytest.mark.parametrize(
    "arguments",
    [
        {"input_ids": torch.zeros(3, dtype=torch.int64)},
        {"input_ids": torch.zeros(1, 3)},
        {"input_ids": tokens(), "labels": tokens()[:, 1:]},
    ],
)
def test_forward_names_what_is_wrong(arguments: dict) -> None:
    with pytest.raises(ValueError, match=f"Atlas: {list(arguments)[-1]}: wanted"):
        make_model()(**arguments)
