"""Fine-tunes a byte-level Atlas on a local text with transformers' Trainer.

    python examples/hf_finetune.py --data notes.txt --out mine --model demo/atlas.safetensors
    python examples/hf_finetune.py --data notes.txt --out mine --model mine --steps 100

`--model` is a checkpoint of `train_lm.py` or a folder of transformers; without it a new, small
model is trained. Needs: pip install 'atlas_ext[hf]' accelerate
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from _data import Text, check_length, held_out_windows, load_text, training_batch
from _tokenizer import END_ID, PAD_ID, VOCAB_SIZE, byte_tokenizer
from torch import Tensor
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from atlas_ext.hf import AtlasForCausalLM, AtlasHFConfig

HELD_OUT_WINDOWS = 64


class Windows(Dataset):
    """Windows of text; the labels are the tokens themselves, the model shifts them."""

    def __init__(self, ids: Tensor) -> None:  # [n, length]
        self.ids = ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "labels": self.ids[index]}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Fine-tune a byte-level Atlas with transformers' Trainer.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", nargs="+", metavar="FILE", help="text to train on; default: standard library")
    add("--out", type=Path, default=Path("finetuned"), help="folder for model and tokenizer")
    add("--model", type=Path, help="what to start from; default: a new model")
    add("--steps", type=int, default=200)
    add("--batch", type=int, default=8)
    add("--accumulate", type=int, default=1, help="batches per step")
    add("--seq-len", type=int, default=256)
    add("--lr", type=float, default=2e-3)
    add("--seed", type=int, default=0)
    add("--checkpointing", action="store_true", help="recompute activations: less memory")
    return parser


def load_start(path: Path | None, seed: int) -> AtlasForCausalLM:
    """The model to start from, with room for the tokenizer's two special tokens."""
    torch.manual_seed(seed)
    special = {"pad_token_id": PAD_ID, "eos_token_id": END_ID}
    if path is None:
        size: dict[str, Any] = {"hidden_size": 64, "num_layers": 2, "num_heads": 4}
        rule: dict[str, Any] = {"window": 8, "chunk_size": 16, "ns_every": 32}
        return AtlasForCausalLM(AtlasHFConfig(VOCAB_SIZE, **size, **rule, **special))
    if path.is_dir():
        return AtlasForCausalLM.from_pretrained(path)
    from _training import load_model

    model = AtlasForCausalLM.from_atlas(load_model(path, "cpu"))
    # before the special tokens, which lie outside the old vocabulary
    model.resize_token_embeddings(VOCAB_SIZE)
    for name, value in special.items():
        setattr(model.config, name, value)
        setattr(model.generation_config, name, value)
    return model


def make_trainer(args: argparse.Namespace, model: AtlasForCausalLM, text: Text) -> Trainer:
    count = args.steps * args.batch * args.accumulate
    options = TrainingArguments(
        output_dir=str(args.out),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch,
        per_device_eval_batch_size=args.batch,
        gradient_accumulation_steps=args.accumulate,
        gradient_checkpointing=args.checkpointing,
        learning_rate=args.lr,
        lr_scheduler_type="cosine",
        warmup_steps=args.steps // 10,
        weight_decay=0.1,
        max_grad_norm=1.0,
        logging_steps=max(1, args.steps // 10),
        save_strategy="no",
        report_to=[],
        seed=args.seed,
        disable_tqdm=True,
    )
    return Trainer(
        model=model,
        args=options,
        train_dataset=Windows(training_batch(text, 0, count, args.seq_len, args.seed)),
        eval_dataset=Windows(held_out_windows(text, HELD_OUT_WINDOWS, args.seq_len)),
        processing_class=byte_tokenizer(),
    )


def main() -> None:
    args = make_parser().parse_args()
    text = load_text(args.data)
    check_length(text, args.seq_len)
    trainer = make_trainer(args, load_start(args.model, args.seed), text)
    before = trainer.evaluate()["eval_loss"] / math.log(2)
    trainer.train()
    after = trainer.evaluate()["eval_loss"] / math.log(2)
    trainer.save_model(str(args.out))  # and the tokenizer: AutoTokenizer finds both
    print(f"Held-out bits per byte: {before:.3f} before, {after:.3f} after {args.steps} steps")
    print(f"Written: {args.out}")


if __name__ == "__main__":
    main()
