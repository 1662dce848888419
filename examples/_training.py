"""A training run that can stop after any step and go on exactly from there."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import safetensors
import safetensors.torch
import torch
from _data import Text, held_out_windows, training_batch
from torch import Tensor
from tqdm import tqdm

from atlas_ext.models import Atlas, AtlasConfig

WARMUP = 0.05  # share of the steps
FINAL_LR = 0.05  # share of the peak
EVALUATIONS = 10  # on the way
EVALUATION_WINDOWS = 32  # on the way; the final figure takes HELD_OUT_WINDOWS
HELD_OUT_WINDOWS = 128


class Interrupt:
    """Remembers Ctrl-C until the step at hand is complete; a second one acts at once."""

    def __init__(self, *signals: signal.Signals) -> None:
        self.requested = False
        self._signals = signals or (signal.SIGINT,)

    def __enter__(self) -> Interrupt:
        self._previous = {each: signal.signal(each, self._remember) for each in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for each, previous in self._previous.items():
            signal.signal(each, previous)

    def _remember(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
        for each in self._signals:
            signal.signal(each, signal.default_int_handler)


@dataclass
class History:
    """What a run has measured so far, by step."""

    loss: list[float] = field(default_factory=list)  # training bits per byte of each step
    held_out: list[tuple[int, float]] = field(default_factory=list)  # (steps done, bits per byte)
    seconds: float = 0.0  # spent training, evaluation not counted
    skipped: int = 0  # steps that changed nothing, their loss or gradient not being finite


class Run:
    """One model in training: weights, optimiser, schedule, history, and the file they live in.

    Options are those of the command line: steps, batch, seq_len, lr, weight_decay, seed.
    """

    stop_signals: tuple[signal.Signals, ...] = (signal.SIGINT,)
    quiet = False  # no progress bar

    def __init__(
        self, name: str, config: AtlasConfig, options: dict[str, Any], device: str, folder: Path
    ) -> None:
        self.name = name
        self.options = options
        self.device = torch.device(device)
        self.path = folder / f"{name}.safetensors"
        self.history = History()
        torch.manual_seed(options["seed"])
        self.model = self.make_model(config)
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        others = [p for p in self.model.parameters() if p.dim() != 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": options["weight_decay"]},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=options["lr"],
            betas=(0.9, 0.99),
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._schedule)

    def make_model(self, config: AtlasConfig) -> Atlas:
        """A fresh model on the run's device."""
        return Atlas(config).to(self.device)

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.history.loss)

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def tokens_per_second(self) -> float:
        tokens = self.step * self.options["batch"] * self.options["seq_len"]
        return tokens / max(self.history.seconds, 1e-9)

    def _schedule(self, step: int) -> float:
        steps = self.options["steps"]
        warmup = max(1, round(WARMUP * steps))
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return FINAL_LR + (1 - FINAL_LR) * 0.5 * (1 + math.cos(math.pi * progress))

    def train_step(self, ids: Tensor) -> float:
        """One optimiser step; returns the loss in bits per byte."""
        ids = ids.to(self.device)
        self.optimizer.zero_grad()
        loss = self.model(ids, labels=ids).loss
        loss.backward()
        # a memory can overflow while it learns; its NaN must not reach the parameters
        if math.isfinite(self.clip_gradients()):
            self.optimizer.step()
        else:
            self.history.skipped += 1
        self.scheduler.step()
        return loss.item() / math.log(2)

    def clip_gradients(self) -> float:
        """Scales the gradients to a norm of at most 1; returns the norm they had."""
        return float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0))

    def must_stop(self, requested: bool) -> bool:
        """Whether to stop before the next step."""
        return requested

    def train(self, text: Text, stop_after: int | None = None, save_every: int = 0) -> bool:
        """Trains to the end of the schedule; False if interrupted. Saves in both cases.

        Also stops when `stop_after` steps are done; also saves after every `save_every` steps.
        """
        steps, batch = self.options["steps"], self.options["batch"]
        length, seed = self.options["seq_len"], self.options["seed"]
        windows = held_out_windows(text, EVALUATION_WINDOWS, length)
        tokens = batch * length
        last = steps if stop_after is None else min(steps, stop_after)
        with Interrupt(*self.stop_signals) as interrupt, tqdm(
            desc=self.name, total=steps * tokens, initial=self.step * tokens,
            unit="tok", unit_scale=True, dynamic_ncols=True, disable=self.quiet,
            mininterval=0.2 if sys.stderr.isatty() else 5.0,  # a log file gets few lines
        ) as bar:  # fmt: skip
            while self.step < last and not self.must_stop(interrupt.requested):
                started = time.perf_counter()
                ids = training_batch(text, self.step, batch, length, seed)
                self.history.loss.append(self.train_step(ids))
                self.history.seconds += time.perf_counter() - started
                if self.step * EVALUATIONS // steps > (self.step - 1) * EVALUATIONS // steps:
                    mean = float(self.held_out_bits(windows).mean())
                    self.history.held_out.append((self.step, mean))
                recent = self.history.loss[-20:]
                bar.set_postfix_str(f"{sum(recent) / len(recent):.3f} bits per byte", refresh=False)
                bar.update(tokens)
                if save_every and self.step % save_every == 0 and self.step < last:
                    self.save()
        self.save()
        return self.step >= steps

    @torch.no_grad()
    def held_out_bits(self, windows: Tensor) -> Tensor:
        """Bits per byte of each window, [n], its first byte not scored."""
        bits = []
        for ids in windows.to(self.device).split(self.options["batch"]):
            logits = self.model(ids).logits[:, :-1].float()
            scores = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none"
            )
            bits.append(scores.view(len(ids), -1).mean(1).cpu() / math.log(2))
        return torch.cat(bits)

    def describe(self) -> dict[str, Any]:
        """All of a run but its tensors, for a JSON file."""
        return {
            "config": self.model.config.to_dict(),
            "options": self.options,
            "scheduler": self.scheduler.state_dict(),
            "history": vars(self.history),
        }

    def take_up(self, about: dict[str, Any]) -> None:
        """The inverse of `describe`, for a run that was made with its options."""
        self.scheduler.load_state_dict(about["scheduler"])
        history = dict(about["history"])
        held_out = [(step, bits) for step, bits in history.pop("held_out")]
        self.history = History(**history, held_out=held_out)

    @classmethod
    def read_about(cls, folder: Path, name: str) -> dict[str, Any]:
        """What `describe` wrote into the checkpoint of a run."""
        return read_checkpoint(folder / f"{name}.safetensors")[1]

    def save(self) -> None:
        """Writes model, optimiser, schedule and history to one safetensors file."""
        state = self.optimizer.state_dict()
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, moments in state["state"].items():
            tensors |= {f"optimizer.{index}.{key}": tensor for key, tensor in moments.items()}
        about = self.describe() | {"param_groups": state["param_groups"]}
        metadata = {key: json.dumps(value) for key, value in about.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # written beside and moved into place: an interrupted save leaves the old file whole
        partial = self.path.with_suffix(".partial")
        safetensors.torch.save_file(tensors, partial, metadata=metadata)
        partial.replace(self.path)

    def load(self) -> None:
        """Takes up everything `save` wrote."""
        tensors, about = read_checkpoint(self.path)
        self.model.load_state_dict(_below("model.", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _below("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": moments, "param_groups": about["param_groups"]})
        self.take_up(about)

    def gather(self) -> Run:
        """The run with all of its weights in this process, to measure and to sample from."""
        return self


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and metadata of a file written by `Run.save`."""
    if not path.exists():
        raise SystemExit(f"No checkpoint at {path}: train first, or name its folder with --out.")
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = {key: json.loads(value) for key, value in file.metadata().items()}
    return tensors, about


def load_model(path: Path, device: str) -> Atlas:
    """The model alone, to generate with."""
    tensors, about = read_checkpoint(path)
    model = Atlas(AtlasConfig(**about["config"]))
    model.load_state_dict(_below("model.", tensors))
    return model.to(device)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
