"""Where the model and its text come from: a file, a folder or a preset; text to tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..models import Atlas, AtlasConfig, DeepTransformer
from ..models.language_model import LanguageModel
from ..models.variants import ATTENTION_VARIANTS

BYTES = 256


@dataclass(frozen=True)
class Source:
    """A model, its name in a title, and whether it comes from a checkpoint."""

    model: LanguageModel
    title: str
    trained: bool


def load_source(name: str) -> Source:
    """A checkpoint of examples/train_lm.py, a folder written by transformers, or a fresh preset.

    Raises:
        ValueError: there is no such file, folder or preset, or it holds no model.
        ImportError: the package that reads it is missing.
    """
    path = Path(name)
    if path.is_dir():
        return Source(_read_folder(path), path.name, trained=True)
    if path.is_file():
        return Source(_read_checkpoint(path), path.name, trained=True)
    try:
        config = AtlasConfig.preset(name, vocab_size=BYTES)
    except ValueError as error:
        raise ValueError(f"inspect: model: no file or folder {name!r}, and: {error}") from None
    torch.manual_seed(0)
    return Source(_make_model(config), f"untrained {name}", trained=False)


def _make_model(config: AtlasConfig) -> LanguageModel:
    return DeepTransformer(config) if config.variant in ATTENTION_VARIANTS else Atlas(config)


def _read_checkpoint(path: Path) -> LanguageModel:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            names = [name for name in file.keys() if name.startswith("model.")]  # noqa: SIM118
            tensors = {name.removeprefix("model."): file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise ValueError(
            f"inspect: model: wanted a safetensors file, got {path}: {error}"
        ) from None
    if "config" not in about:
        wanted = "a checkpoint of train_lm.py (its metadata has 'config')"
        raise ValueError(f"inspect: model: wanted {wanted}, got {path} with {sorted(about)}")
    model = _make_model(AtlasConfig(**json.loads(about["config"])))
    model.load_state_dict(tensors)
    return model


def _read_folder(folder: Path) -> LanguageModel:
    config = folder / "config.json"
    about = json.loads(config.read_text(encoding="utf-8")) if config.exists() else {}
    if "variant" not in about:
        wanted = "a folder written by save_pretrained of atlas_ext.hf, or a checkpoint file"
        raise ValueError(f"inspect: model: wanted {wanted}, got the folder {folder}")
    from ..hf import AtlasForCausalLM, DeepTransformerForCausalLM

    growing = about["variant"] in ATTENTION_VARIANTS
    wrapper = DeepTransformerForCausalLM if growing else AtlasForCausalLM
    core: LanguageModel = wrapper.from_pretrained(folder).model
    return core


def read_tokens(
    path: Path,
    count: int,
    source: str,  # what the model was loaded from: a folder may hold a tokenizer
    vocab_size: int,
) -> tuple[Tensor, list[str]]:  # [1, T] and the text of each token
    """The first `count` tokens of a text: the folder's tokenizer's, else its bytes.

    Raises:
        ValueError: the text is empty or cannot be read, or the model's tokens are not bytes.
    """
    if count < 1:
        raise ValueError(f"inspect: tokens: wanted at least 1, got {count}")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"inspect: text: cannot read {path}: {error.strerror}") from None
    if (Path(source) / "tokenizer_config.json").exists():
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(source)
        ids = tokenizer(data.decode(errors="replace")).input_ids[:count]
        pieces = [tokenizer.decode([token]) for token in ids]
    else:
        if vocab_size < BYTES:
            wanted = f"a vocabulary of at least {BYTES}: without a tokenizer, tokens are bytes"
            raise ValueError(f"inspect: model: wanted {wanted}, got {vocab_size}")
        ids = list(data[:count])
        pieces = [chr(token) for token in ids]
    if not ids:
        raise ValueError(f"inspect: text: wanted at least one token, got none in {path}")
    return torch.tensor([ids]), pieces
