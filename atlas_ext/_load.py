"""Loads the compiled library, and says plainly what is wrong when that fails."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

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
    runtime = re.search(r"cuda_runtime=(\d+)", torch.ops.atlas_ext.build_info())
    if runtime and (torch.version.cuda or "").split(".")[0] != runtime[1]:
        raise ImportError(wrong_cuda(runtime[1]))


def load_emulated() -> Any:
    """The emulated CUDA backend's module, which registers namespace `atlas_ext_emulated`.

    ATLAS_EXT_EMULATED_LIBRARY names another build than the one beside this file.
    """
    name = "atlas_ext._emulated"
    if name in sys.modules:
        return sys.modules[name]
    chosen = os.environ.get("ATLAS_EXT_EMULATED_LIBRARY")
    suffix = importlib.machinery.EXTENSION_SUFFIXES[0]
    path = Path(chosen) if chosen else Path(__file__).with_name(f"_emulated{suffix}")
    if not path.exists():
        raise ImportError(f"atlas_ext: no emulated CUDA backend at {path}; build it: make emulate")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[name] = module
    return module


def explain(error: str) -> str:
    """What to do about the dynamic loader's message `error`."""
    if "No module named" in error:
        return (
            "atlas_ext: the compiled library atlas_ext/_C.abi3.so is missing; in a source tree, "
            "build it in place: pip install --no-build-isolation -e ."
        )
    if "cuda" in error.lower():
        runtime = re.search(r"libcudart\.so\.(\d+)", error)
        return f"{wrong_cuda(runtime[1] if runtime else '')} [{error}]"
    return (
        f"atlas_ext: the compiled library does not load under torch {torch.__version__}; "
        f"build it for this one: {REBUILD} [{error}]"
    )


def wrong_cuda(runtime: str) -> str:
    return (
        f"atlas_ext: this installation was built for CUDA {runtime}".rstrip()
        + f" and wanted a torch built for it, got torch {torch.__version__} "
        f"(CUDA: {torch.version.cuda or 'none'}). Install such a torch, or build atlas_ext for "
        f"this one: {REBUILD}"
    )
