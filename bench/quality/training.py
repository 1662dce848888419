"""Training of one model on one task from one seed."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from atlas_ext import __version__
from atlas_ext.models.language_model import LanguageModel
from bench.device import cpu_model

from . import models
from .calibration import calibrate
from .tasks import IGNORED, Task

RESULTS = Path(__file__).parent / "results"
LEARNING_RATE = 4e-3  # of a model for which none was searched
WEIGHT_DECAY = 0.01
CLIP = 1.0
WARM_UP = 0.1  # share of the steps
FINAL_RATE = 0.1  # of the peak
EVALUATIONS = 20  # along a run
EVALUATED, TESTED = 64, 512  # sequences of an evaluation, and of the last one
SOLVED, PATIENCE = 0.998, 2  # stop after so many evaluations of such an accuracy
# of the seeds of training data, evaluation and test, so that no two share a stream
STREAMS = {"train": 0, "evaluate": 1, "test": 2}

Result = dict[str, Any]
Results = dict[str, dict[str, list[Result]]]  # task -> model -> one for each seed


class Score(NamedTuple):
    """Mean over the labels of some sequences."""

    loss: float  # nats
    accuracy: float


def generator(seed: int, stream: str) -> torch.Generator:
    return torch.Generator().manual_seed(len(STREAMS) * seed + STREAMS[stream])


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:  # [B, T, vocab_size], [B, T] -> scalar
    """Mean cross-entropy over what is scored; labels stand where the logits predict them."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)


@torch.no_grad()
def evaluate(model: torch.nn.Module, task: Task, sequences: int, source: torch.Generator) -> Score:
    """Loss and accuracy on fresh sequences."""
    loss, right, scored = 0.0, 0, 0
    for start in range(0, sequences, task.batch_size):
        tokens, labels = task.batch(source, min(task.batch_size, sequences - start))
        logits = model(tokens).logits
        count = int((labels != IGNORED).sum())
        loss += count * float(loss_of(logits, labels))
        right += int((logits.argmax(-1) == labels).sum())
        scored += count
    return Score(loss / scored, right / scored)


def rounded(value: float) -> float | None:
    """To four digits; None, JSON's null, for what is no finite number."""
    return round(value, 4) if math.isfinite(value) else None


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to FINAL_RATE."""
    warm_up = max(1, round(WARM_UP * steps))
    if step < warm_up:
        return (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizer(model: torch.nn.Module, lr: float) -> torch.optim.AdamW:
    """AdamW; weight decay for matrices of the layers alone, not for gates' biases and scales."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def train(model: torch.nn.Module, task: Task, lr: float, seed: int, label: str = "") -> Result:
    """Trains on fresh batches; stops early when the task is solved.

    Returns the score on test sequences, the steps and processor seconds taken, and
    the curve: step, loss and accuracy at each evaluation. A loss that is no number is None.
    """
    optimizer = make_optimizer(model, lr)
    data = generator(seed, "train")
    curve: list[tuple[int, float | None, float | None]] = []
    solved = 0
    started = time.process_time()
    bar = tqdm(range(1, task.steps + 1), desc=label, leave=False, mininterval=1.0)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = lr * schedule(step - 1, task.steps)
        tokens, labels = task.batch(data, task.batch_size)
        loss = loss_of(model(tokens).logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        if torch.isfinite(norm):  # a batch that overflows changes nothing
            optimizer.step()
        if step % max(1, task.steps // EVALUATIONS) == 0 or step == task.steps:
            score = evaluate(model, task, EVALUATED, generator(seed, "evaluate"))
            curve.append((step, *map(rounded, score)))
            bar.set_postfix(loss=f"{score.loss:.3f}", accuracy=f"{score.accuracy:.3f}")
            solved = solved + 1 if score.accuracy >= SOLVED else 0
            if solved == PATIENCE:
                break
    bar.close()
    seconds = time.process_time() - started
    score = evaluate(model, task, TESTED, generator(seed, "test"))
    return {
        "accuracy": rounded(score.accuracy),
        "loss": rounded(score.loss),
        "steps": step,
        "tokens": step * task.batch_size * task.length,
        "seconds": round(seconds, 1),
        "curve": curve,
    }


def environment() -> dict[str, Any]:
    """What the numbers depend on besides the seed."""
    return {
        "atlas_ext": __version__,
        "torch": torch.__version__,
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
    }


def fit(task: Task, name: str, seed: int, lr: float) -> tuple[LanguageModel, Result]:
    """A model trained on a task from a seed at a peak learning rate, and what is known of it."""
    torch.manual_seed(seed)
    model = models.build(name, task.vocab_size)
    tokens, _ = task.batch(generator(seed, "evaluate"), task.batch_size)
    step_sizes = calibrate(model, tokens)
    about = {
        "task": task.name,
        "model": name,
        "seed": seed,
        "lr": lr,
        "batch_size": task.batch_size,
        "step_sizes": [round(size, 5) for size in step_sizes],
        "hidden_size": model.config.hidden_size,
        "parameters": models.count_parameters(model),
        "state_bytes": models.state_bytes(model, task.length),
    }
    return model, about | train(model, task, lr, seed, label=f"{task.name} {name}-{seed}")


def run(task: Task, name: str, seed: int, folder: Path, lr: float = LEARNING_RATE) -> Result:
    """The result of a model on a task from a seed: read if it is there, else trained and written
    to `folder`/<task>/<model>-<seed>.json."""
    path = folder / task.name / f"{name}-{seed}.json"
    if path.exists():
        return read(path)
    model, result = fit(task, name, seed, lr)
    parts = {}
    for part, kind in task.parts().items():
        sequences = max(1, TESTED * task.length // kind.length)  # as many tokens in each part
        score = evaluate(model, kind, sequences, generator(seed, "test"))
        parts[part] = rounded(score.accuracy)
    result |= {"parts": parts, "environment": environment()}
    write(path, result)
    return result


def read(path: Path) -> Result:
    loaded: Result = json.loads(path.read_text())
    return loaded


def write(path: Path, result: Result) -> None:
    """Whole or not at all: a run that is interrupted here is made again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, allow_nan=False) + "\n")
    part.replace(path)
