"""The demo's models: the first one and what is taken away from it."""

from __future__ import annotations

import argparse
from typing import Any

from atlas_ext.models import AtlasConfig

FIRST = "atlas"  # name of the first model and of its checkpoint
# what each ablation is, as the report's sentences say it
ABLATIONS = {
    "gated-delta": "the gated delta rule: a linear memory, no window, momentum, Muon or features",
    "linear-memory": "a linear memory instead of a deep one",
    "no-muon": "plain gradient descent instead of Muon",
    "window-1": "a window of one token",
    "no-polynomial": "no polynomial features",
}
DEFAULT_ABLATIONS = ("gated-delta", "linear-memory")


def make_configs(args: argparse.Namespace) -> dict[str, AtlasConfig]:
    """The first model and the ablations asked for; only the memory differs.

    Raises:
        ValueError: a setting is out of range, or an ablation takes away what is not there.
    """
    size: dict[str, Any] = {
        "vocab_size": 256,
        "hidden_size": args.hidden,
        "num_layers": args.layers,
        "num_heads": args.heads,
        "chunk_size": args.chunk_size,
    }
    plain = AtlasConfig(**size, variant=args.variant, memory=args.memory)
    first: dict[str, Any] = size | {
        "variant": args.variant,
        "memory": plain.memory,
        "step_size": args.step_size,
    }
    if plain.degree is not None:
        first["degree"] = args.degree or None
    if plain.window > 1:
        first["window"] = args.window
    if plain.ns_steps > 0:
        first["ns_every"] = args.ns_every
    configs = {FIRST: AtlasConfig(**first)}
    # another kind of write has a step size of its own kind
    changes: dict[str, dict[str, Any]] = {
        "linear-memory": first | {"memory": "linear"},
        "no-muon": first | {"ns_steps": 0, "step_size": None},
        "window-1": first | {"window": 1},
        "no-polynomial": first | {"degree": None},
        "gated-delta": size | {"variant": "delta", "retention": True},
    }
    names = DEFAULT_ABLATIONS if args.ablations is None else args.ablations
    for name in names:
        config = AtlasConfig(**changes[name])
        if config == configs[FIRST] or (name == "no-muon" and configs[FIRST].ns_steps == 0):
            if args.ablations is None:
                continue
            raise ValueError(f"--ablations: {name}: the first model is that already.")
        configs[name] = config
    return configs
