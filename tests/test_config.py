"""AtlasConfig: validation, defaults of the variants, presets."""

import dataclasses

import pytest

from atlas_ext.models import Atlas, AtlasConfig, DeepTransformer

VARIANTS = (
    "linear_attention", "delta", "titans", "dla", "swla", "omeganet", "atlas", "atlas++",
)  # fmt: skip
EXPONENTIAL = ("deep_transformer", "swdt", "dot")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vocab_size", 0),
        ("vocab_size", 2.0),
        ("hidden_size", -8),
        ("hidden_size", 30),  # not a multiple of num_heads
        ("num_layers", 0),
        ("num_heads", True),
        ("head_dim", 0),
        ("variant", "mamba"),
        ("hybrid", "mam"),
        ("swa_window", 0),
        ("normalize", "l1"),
        ("memory", "lstm"),
        ("activation", "relu"),
        ("degree", 5),
        ("degree", True),
        ("window", 0),
        ("chunk_size", 0),
        ("ns_steps", -1),
        ("ns_schedule", "newton"),
        ("ns_every", 0),
        ("step_size", 0.0),
        ("conv_size", 0),
        ("mlp_ratio", float("nan")),
        ("norm_eps", "small"),
        ("tie_embeddings", 1),
    ],
)
def test_errors_name_field_wanted_and_got(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"AtlasConfig: {field}: wanted .*, got") as raised:
        AtlasConfig(**({"vocab_size": 256, "num_heads": 4} | {field: value}))
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize(
    ("variant", "field", "value"),
    [
        ("delta", "memory", "mlp"),
        ("titans", "window", 4),
        ("omeganet", "ns_steps", 5),
        ("linear_attention", "degree", 2),
        ("deep_transformer", "window", 4),
        ("dot", "degree", 2),
        ("swdt", "hybrid", "mag"),
        ("atlas", "normalize", "softmax"),
    ],
)
def test_a_variant_keeps_its_meaning(variant: str, field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{field}: wanted .* for variant '{variant}'"):
        AtlasConfig(vocab_size=256, variant=variant, **{field: value})


def test_defaults_follow_the_variant() -> None:
    atlas = AtlasConfig(vocab_size=256)
    assert (atlas.variant, atlas.memory, atlas.degree, atlas.ns_steps) == ("atlas", "mlp", 2, 5)
    assert (atlas.objective, atlas.momentum, atlas.head_dim) == ("l2", True, 64)
    delta = AtlasConfig(vocab_size=256, variant="delta")
    assert (delta.memory, delta.window, delta.chunk_size) == ("linear", 1, 1)
    assert delta.degree is None and not delta.momentum and not delta.retention
    assert AtlasConfig(vocab_size=256, variant="dla").objective == "dot"
    assert AtlasConfig(vocab_size=256, degree=None).degree is None


def test_config_is_frozen_and_survives_a_dictionary() -> None:
    config = AtlasConfig.preset("atlas-170m", vocab_size=1000, window=8)
    assert AtlasConfig(**config.to_dict()) == config
    assert dataclasses.replace(config, num_layers=1).num_layers == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.window = 2
    with pytest.raises(TypeError):
        AtlasConfig(256)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_constructs(variant: str) -> None:
    model = Atlas(AtlasConfig.preset(f"{variant}-tiny", vocab_size=64))
    count = {"linear": 1, "mlp": 2, "gated_mlp": 3}[model.config.memory]
    assert len(model.blocks[0].memory.memory_weights) == count


@pytest.mark.parametrize("variant", EXPONENTIAL)
def test_exponential_variants_make_deep_transformers(variant: str) -> None:
    config = AtlasConfig.preset(f"{variant}-tiny", vocab_size=64)
    model = DeepTransformer(config)
    assert len(model.blocks[0].memory.memory_weights) == 2
    assert (config.degree, config.ns_steps, config.window) == (
        *(None, 0), 1 if variant == "deep_transformer" else 16
    )  # fmt: skip
    with pytest.raises(ValueError, match=f"Atlas: config.variant: wanted .* got '{variant}'"):
        Atlas(config)
    with pytest.raises(ValueError, match=r"DeepTransformer: config.variant: .* got 'atlas'"):
        DeepTransformer(AtlasConfig(vocab_size=9))


def test_attention_heads_of_a_hybrid() -> None:
    assert AtlasConfig(vocab_size=9).swa_heads is None
    assert AtlasConfig(vocab_size=9, hybrid="mal").swa_heads == 4  # heads of 64
    assert AtlasConfig(vocab_size=9, hidden_size=32, hybrid="mag", num_heads=8).swa_heads == 8
    for heads in (3, 0, 256):  # no divisor, none, heads of one
        with pytest.raises(ValueError, match=f"AtlasConfig: swa_heads: wanted .* got {heads}"):
            AtlasConfig(vocab_size=9, hybrid="mac", swa_heads=heads)


@pytest.mark.parametrize("variant", ["dla", "omeganet", "atlas", "atlas++", "titans"])
def test_presets_with_deep_memories_have_small_heads(variant: str) -> None:
    for size, hidden_size, num_layers in (
        ("170m", 768, 12), ("340m", 1024, 24), ("760m", 1536, 24), ("1.3b", 2048, 18),
    ):  # fmt: skip
        config = AtlasConfig.preset(f"{variant}-{size}")
        assert (config.hidden_size, config.num_layers) == (hidden_size, num_layers)
        assert config.head_dim == (64 if variant == "titans" else 16)
        assert config.num_heads * config.head_dim == hidden_size
        assert config.ns_every == (16 if config.ns_steps else 1)


def test_presets_with_linear_memories_keep_the_paper_heads() -> None:
    assert AtlasConfig.preset("delta-1.3b").head_dim == 256
    assert AtlasConfig.preset("swla-170m").num_heads == 16


@pytest.mark.parametrize("name", ["atlas", "atlas-13b", "gpt-170m", "dot-170b"])
def test_unknown_presets_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"preset: wanted .* got '{name}'"):
        AtlasConfig.preset(name)
