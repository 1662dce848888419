"""Evaluates a model with lm-evaluation-harness on tasks of its own, without any download.

    python examples/lm_eval_local.py --model finetuned --data notes.txt

Two tasks: `local_text`, bits per byte of the held-out part of a text, and `recall`, where the
model has to repeat what stood behind a key. Needs: pip install 'atlas_ext[hf]' accelerate lm-eval
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import datasets
import lm_eval
from _data import Text, held_out_windows, load_text
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM

MAX_LENGTH = 4096  # of the harness's windows; the model itself has no limit
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def text_task(text: Text, count: int, length: int) -> ConfigurableTask:
    """Bits per byte of `count` held-out windows, each scored from its first byte on."""
    windows = held_out_windows(text, count, length).tolist()
    documents = [{"text": bytes(window).decode(errors="replace")} for window in windows]
    return make_task(
        "local_text",
        documents,
        output_type="loglikelihood_rolling",
        doc_to_text="",
        doc_to_target="{{text}}",
        metric_list=[{"metric": "bits_per_byte", "aggregation": "bits_per_byte"}],
    )


def recall_task(count: int, pairs: int, seed: int) -> ConfigurableTask:
    """Which value belongs to a key that was seen: "a=3;b=7;...;b=" goes on with "7"."""
    source = random.Random(seed)
    documents = []
    for _ in range(count):
        keys, values = source.sample(LETTERS, pairs), source.choices("0123456789", k=pairs)
        asked = source.randrange(pairs)
        shown = ";".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
        documents.append({"query": f"{shown};{keys[asked]}=", "answer": int(values[asked])})
    return make_task(
        "recall",
        documents,
        output_type="multiple_choice",
        doc_to_text="{{query}}",
        doc_to_target="answer",
        doc_to_choice=list("0123456789"),
        target_delimiter="",
        metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    )


def make_task(name: str, documents: list[dict[str, Any]], **options: Any) -> ConfigurableTask:
    def load(**_: Any) -> dict[str, datasets.Dataset]:
        return {"test": datasets.Dataset.from_list(documents)}

    config = {"task": name, "custom_dataset": load, "test_split": "test", **options}
    return ConfigurableTask(config=config)


def evaluate(
    model: str | Path, tasks: list[ConfigurableTask], device: str = "cpu", batch: int = 8
) -> dict[str, dict[str, Any]]:
    """Results by task; `model` is a folder with model and tokenizer."""
    import atlas_ext.hf  # noqa: F401  registers the Auto classes

    harness = HFLM(
        pretrained=str(model),
        device=device,
        batch_size=batch,
        max_length=MAX_LENGTH,
    )
    results = lm_eval.simple_evaluate(harness, tasks=tasks, bootstrap_iters=0, log_samples=False)
    assert results is not None
    return results["results"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of hf_finetune.py")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="default: standard library")
    parser.add_argument("--count", type=int, default=64, help="documents of each task")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--pairs", type=int, default=6, help="key-value pairs of a recall document")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    text = load_text(args.data)
    tasks = [text_task(text, args.count, args.seq_len), recall_task(args.count, args.pairs, 0)]
    for name, result in evaluate(args.model, tasks, args.device).items():
        for metric, value in result.items():
            if isinstance(value, float):
                print(f"{name:12} {metric.partition(',')[0]:16} {value:.4f}")


if __name__ == "__main__":
    main()
