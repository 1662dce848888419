"""Configuration of a model: one frozen dataclass, validated once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from .variants import (
    HYBRIDS,
    LIFTED_HEAD_DIM,
    NS_EVERY,
    PLAIN_HEAD_DIM,
    SIZES,
    VARIANTS,
)

MEMORIES = ("linear", "mlp", "gated_mlp")
NS_SCHEDULES = ("muon", "polar_express")
NORMALIZATIONS = ("none", "softmax", "rms")
SWA_HEAD_DIM = 64  # of a hybrid's attention, where it divides the width


@dataclass(frozen=True, kw_only=True)
class AtlasConfig:
    """Shape and kind of a language model.

    Fields left at None follow the variant and hold its value after construction.

    Attributes:
        vocab_size: number of token ids.
        hidden_size, num_layers, num_heads: of the model.
        head_dim: K = V of a memory; None: hidden_size // num_heads.
        variant: linear_attention, delta, titans, dla, swla, omeganet, atlas or atlas++ (`Atlas`);
            deep_transformer, swdt or dot (`DeepTransformer`).
        hybrid: attention beside the memory of an `Atlas`: None, "mag", "mal" or "mac".
        memory: "linear", "mlp" or "gated_mlp".
        expansion: hidden width of a deep memory over head_dim.
        activation, residual: of a deep memory.
        degree: of the polynomial feature map; "auto": the variant's; None: no map.
        window: W, tokens in the inner loss.
        retention: the memory fades with a gate alpha; False: alpha = 1.
        chunk_size: C; part of the model: run it as it was trained.
        ns_steps, ns_schedule, ns_every: Newton-Schulz (Muon) inside the rule.
        normalize: of the read of a `DeepTransformer`, "none", "softmax" or "rms".
        swa_window: of a hybrid: tokens that its attention sees, or that a segment of "mac" holds.
        swa_heads: of a hybrid's attention; None: heads of 64 where that divides hidden_size, else
            num_heads.
        step_size: initial eta; None: chosen by the layer.
        conv_size: taps of the short convolutions.
        mlp_ratio: hidden width of the SwiGLU MLP over hidden_size, rounded up to a multiple of 16.
        norm_eps: of all RMSNorms.
        tie_embeddings: use the embedding as the output matrix.
        activation_checkpointing: recompute each block in the backward pass.

    Raises:
        ValueError: a field is out of range or at odds with the variant.
    """

    vocab_size: int
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    head_dim: int | None = None
    variant: str = "atlas"
    hybrid: str | None = None
    memory: str | None = None
    expansion: int = 4
    activation: str = "gelu"
    residual: bool = True
    degree: int | str | None = "auto"
    window: int | None = None
    retention: bool | None = None
    chunk_size: int | None = None
    ns_steps: int | None = None
    ns_schedule: str = "muon"
    ns_every: int = 1
    normalize: str = "none"
    swa_window: int = 512
    swa_heads: int | None = None
    step_size: float | None = None
    conv_size: int = 4
    mlp_ratio: float = 8 / 3
    norm_eps: float = 1e-6
    tie_embeddings: bool = False
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        _check_choice("variant", self.variant, tuple(VARIANTS))
        _check_choice("hybrid", self.hybrid, (None, *HYBRIDS))
        for name in ("vocab_size", "hidden_size", "num_layers", "num_heads", "expansion"):
            _check_count(name, getattr(self, name))
        self._fill_defaults()
        for name in ("head_dim", "window", "chunk_size", "ns_every", "conv_size", "swa_window"):
            _check_count(name, getattr(self, name))
        _check_count("ns_steps", self.ns_steps, least=0)
        _check_choice("memory", self.memory, MEMORIES)
        _check_choice("activation", self.activation, ("gelu", "silu", "identity"))
        _check_choice("ns_schedule", self.ns_schedule, NS_SCHEDULES)
        _check_choice("normalize", self.normalize, NORMALIZATIONS)
        _check_choice("degree", self.degree, (None, 1, 2, 3, 4))
        for name in ("residual", "retention", "tie_embeddings", "activation_checkpointing"):
            _check_choice(name, getattr(self, name), (False, True))
        for name in ("mlp_ratio", "norm_eps", "step_size"):
            _check_positive(name, getattr(self, name), optional=name == "step_size")
        self._check_variant()

    def _fill_defaults(self) -> None:
        spec = VARIANTS[self.variant]
        if self.head_dim is None and self.hidden_size % self.num_heads:
            wanted = f"a multiple of num_heads = {self.num_heads} (or give head_dim)"
            raise _error("hidden_size", wanted, self.hidden_size)
        defaults = {
            "head_dim": self.hidden_size // self.num_heads,
            "memory": spec.memory,
            "window": 16 if spec.windowed else 1,
            "retention": spec.retention,
            "chunk_size": spec.chunk_size,
            "ns_steps": 5 if spec.muon else 0,
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.hybrid is not None and self.swa_heads is None:
            whole = self.hidden_size % SWA_HEAD_DIM == 0
            heads = self.hidden_size // SWA_HEAD_DIM if whole else self.num_heads
            object.__setattr__(self, "swa_heads", heads)
        if self.degree == "auto":
            object.__setattr__(self, "degree", spec.degree)

    def _check_variant(self) -> None:
        spec, name = VARIANTS[self.variant], self.variant
        if spec.memory == "linear" and self.memory != "linear":
            raise _error("memory", f"'linear' for variant {name!r}", self.memory)
        if not spec.windowed and self.window != 1:
            raise _error("window", f"1 for variant {name!r}", self.window)
        if not spec.muon and self.ns_steps != 0:
            raise _error("ns_steps", f"0 for variant {name!r}", self.ns_steps)
        if not spec.polynomial and self.degree is not None:
            raise _error("degree", f"None for variant {name!r}", self.degree)
        if not spec.exponential and self.normalize != "none":
            raise _error("normalize", f"'none' for variant {name!r}", self.normalize)
        if spec.exponential and self.hybrid is not None:
            raise _error("hybrid", f"None for variant {name!r}", self.hybrid)
        if self.hybrid is not None:
            self._check_attention_heads()

    def _check_attention_heads(self) -> None:
        _check_count("swa_heads", self.swa_heads)
        heads = self.swa_heads or 0
        if self.hidden_size % heads or self.hidden_size // heads % 2:
            wanted = f"a divisor of hidden_size = {self.hidden_size} with an even quotient"
            raise _error("swa_heads", wanted, heads)

    @property
    def objective(self) -> str:
        """Inner loss of the variant, "l2" or "dot"."""
        return VARIANTS[self.variant].objective

    @property
    def momentum(self) -> bool:
        """Whether the variant keeps a momentum."""
        return VARIANTS[self.variant].momentum

    @property
    def intermediate_size(self) -> int:
        """Hidden width of the SwiGLU MLP."""
        return -(-int(self.hidden_size * self.mlp_ratio) // 16) * 16

    @classmethod
    def preset(cls, name: str, *, vocab_size: int = 32_000, **overrides: Any) -> AtlasConfig:
        """A named configuration, "<variant>-{tiny,170m,340m,760m,1.3b}".

        Sizes are those of the paper's table 7. Its heads column suits attention: variants with a
        deep memory get heads of 16 where they have a polynomial map and heads of 64 where they have
        none, hidden_size // head_dim of them, and Newton-Schulz every 16 tokens. Heads given as an
        override keep that width.

        Raises:
            ValueError: no preset of that name, or an override is out of range.
        """
        variant, _, size = name.rpartition("-")
        if variant not in VARIANTS or size not in SIZES:
            wanted = f"<variant>-<size> with variant in {tuple(VARIANTS)}, size in {tuple(SIZES)}"
            raise _error("preset", wanted, name)
        hidden_size, num_layers, num_heads = SIZES[size]
        hidden_size = overrides.get("hidden_size", hidden_size)
        fields: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": hidden_size,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "variant": variant,
        }
        spec = VARIANTS[variant]
        if spec.memory != "linear":
            head_dim = PLAIN_HEAD_DIM if spec.degree is None else LIFTED_HEAD_DIM
            fields |= {"num_heads": hidden_size // head_dim, "head_dim": head_dim}
            fields["ns_every"] = NS_EVERY if spec.muon else 1
        return cls(**(fields | overrides))

    def to_dict(self) -> dict[str, Any]:
        """All fields by name; `AtlasConfig(**config.to_dict())` equals the original."""
        return asdict(self)


def _error(name: str, wanted: str, got: object) -> ValueError:
    return ValueError(f"AtlasConfig: {name}: wanted {wanted}, got {got!r}")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    # by identity of type too: True == 1 and 2.0 == 2 are not what was asked for
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise _error(name, f"one of {', '.join(map(repr, choices))}", value)


def _check_count(name: str, value: object, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise _error(name, f"an integer of at least {least}", value)


def _check_positive(name: str, value: object, *, optional: bool = False) -> None:
    if optional and value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise _error(name, "a finite number above 0", value)
