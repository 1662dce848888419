"""Loads the compiled library, and says plainly what is wrong when that fails."""

from __future__ import annotations

import importlib
import re

import torch

REBUILD = "pip install --no-build-isolation --no-deps --force-reinstall <atlas_ext's source folder>"


def load() -> None:
    """Import `atlas_ext._C`, whose static initialisers register the operators."""
    release = re.findall(r"\d+", torch.__version__)[:2]
    if tuple(map(int, release)) < (2, 10):
        raise ImportError(f"atlas_ext: wanted torch >= 2.10, got torch {torch.__version__}")
    try:
        importlib.import_module("atlas_ext._C")
    except ImportError as error:
        raise ImportError(explain(str(error))) from error


def explain(error: str) -> str:
    """What to do about the loader's message `error`."""
    if "No module named" in error:
        return (
            "atlas_ext: the compiled library atlas_ext/_C.abi3.so is missing; if this is a source "
            "tree, build it in place: pip install --no-build-isolation -e ."
        )
    if "cuda" in error.lower():
        built_for = re.search(r"libcudart\.so\.(\d+)", error)
        return (
            f"atlas_ext: this installation was built for CUDA {built_for[1] if built_for else ''}"
            f"{' ' if built_for else ''}and needs a torch built for it, got torch "
            f"{torch.__version__} ({torch.version.cuda or 'no CUDA'}). Install such a torch, or "
            f"build atlas_ext for this one: {REBUILD} [{error}]"
        )
    return (
        f"atlas_ext: the compiled library does not load under torch {torch.__version__}; "
        f"build it for this one: {REBUILD} [{error}]"
    )
