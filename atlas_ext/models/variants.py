"""The named models and the sizes of the paper."""

from __future__ import annotations

from typing import NamedTuple


class Variant(NamedTuple):
    """A row of the table of named models; what is off here cannot be switched on."""

    memory: str
    objective: str
    polynomial: bool = False  # may have a feature map; degree 2 unless said otherwise
    degree: int | None = None
    windowed: bool = False  # may have a window beyond 1
    momentum: bool = False
    muon: bool = False
    retention: bool = True  # default; both are allowed
    chunk_size: int = 64
    exponential: bool = False  # the exponential map: a DeepTransformer


VARIANTS = {
    "linear_attention": Variant("linear", "dot", retention=False),
    "delta": Variant("linear", "l2", retention=False, chunk_size=1),
    "titans": Variant("mlp", "l2", momentum=True),
    "dla": Variant("mlp", "dot", polynomial=True, degree=2),
    "swla": Variant("linear", "dot", polynomial=True, windowed=True),
    "omeganet": Variant("mlp", "l2", polynomial=True, degree=2, windowed=True),
    "atlas": Variant("mlp", "l2", True, 2, True, momentum=True, muon=True),
    "atlas++": Variant("gated_mlp", "l2", True, 2, True, momentum=True, muon=True),
    "deep_transformer": Variant("mlp", "dot", exponential=True),
    "swdt": Variant("mlp", "dot", windowed=True, exponential=True),
    "dot": Variant("mlp", "l2", windowed=True, exponential=True),
}
ATLAS_VARIANTS = tuple(name for name, row in VARIANTS.items() if not row.exponential)
ATTENTION_VARIANTS = tuple(name for name, row in VARIANTS.items() if row.exponential)
HYBRIDS = ("mag", "mal", "mac")

# hidden_size, num_layers, num_heads (paper, table 7)
SIZES = {
    "tiny": (128, 2, 8),
    "170m": (768, 12, 16),
    "340m": (1024, 24, 16),
    "760m": (1536, 24, 16),
    "1.3b": (2048, 18, 8),
}


# Heads of the presets with deep memories, with and without a polynomial map: the paper's heads, up
# to 256 wide, would give billions of memory weights; these give the two kinds about as many.
LIFTED_HEAD_DIM = 16
PLAIN_HEAD_DIM = 64
NS_EVERY = 16  # of the presets: a Newton-Schulz at every token costs more than all of the rest
