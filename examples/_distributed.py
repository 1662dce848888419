"""Training in several processes under torchrun: FSDP2, and checkpoints in shards."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from _training import Run
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.distributed.fsdp import fully_shard

from atlas_ext.models import Atlas, AtlasConfig

ABOUT = "about.json"  # written last: a folder that has it is complete


@contextmanager
def processes(device: str) -> Iterator[str]:
    """Joins the processes that torchrun has started; gives this process's device."""
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device
        dist.barrier()  # torchrun ends all processes as soon as one has failed
    finally:
        dist.destroy_process_group()


class DistributedRun(Run):
    """A run whose weights, gradients and moments are spread over the processes.

    Every process sees the same options and steps and trains on its part of each batch. Held-out
    text is scored by all of them alike, since a forward pass needs all of them anyway.
    """

    # torchrun hands on what it gets, and a cluster's scheduler sends SIGTERM
    stop_signals = (signal.SIGINT, signal.SIGTERM)

    def __init__(
        self, name: str, config: AtlasConfig, options: dict[str, Any], device: str, folder: Path
    ) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.quiet = self.rank > 0
        self.folder = folder
        if options["batch"] % self.world:
            raise ValueError(
                f"--batch: wanted a multiple of the {self.world} processes, got {options['batch']}"
            )
        super().__init__(name, config, options, device, folder)
        self.path = folder / f"{name}.shards"
        self.saved: int | None = None  # step of the checkpoint that this run wrote or took up

    def make_model(self, config: AtlasConfig) -> Atlas:
        """The same weights as in one process, sharded block by block."""
        model = super().make_model(config)
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        return model

    def train_step(self, ids: Tensor) -> float:
        """A step on this process's part of the batch; returns the mean loss of all parts."""
        loss = torch.tensor(super().train_step(ids.chunk(self.world)[self.rank]))
        loss = loss.double().to(self.device)
        dist.all_reduce(loss)
        return loss.item() / self.world

    def clip_gradients(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        return float(norm.full_tensor())

    def must_stop(self, requested: bool) -> bool:
        """All stop at the same step, as soon as one of them was asked to."""
        flag = torch.tensor(float(requested), device=self.device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return bool(flag)

    def save(self) -> None:
        """Writes `<name>.shards/step-<n>/`, each process its shards, and removes the one before."""
        if self.saved == self.step:
            return
        target = self.path / f"step-{self.step:08d}"
        if self.rank == 0 and target.exists():  # of another run
            shutil.rmtree(target)
        dist.barrier()
        dcp.save(self._tensors(), checkpoint_id=target)
        if self.rank == 0:
            partial = target / "about.partial"
            partial.write_text(json.dumps(self.describe()))
            partial.replace(target / ABOUT)
            for other in self.path.glob("step-*"):
                if other != target:
                    shutil.rmtree(other)
        dist.barrier()
        self.saved = self.step

    def load(self) -> None:
        """Takes up the newest complete checkpoint, also one of another number of processes."""
        source = newest(self.path)
        self.take_up(json.loads((source / ABOUT).read_text()))
        self.saved = self.step
        tensors = self._tensors()
        dcp.load(tensors, checkpoint_id=source)
        if self.step == 0:
            set_model_state_dict(self.model, tensors["model"])
        else:
            set_state_dict(
                self.model,
                self.optimizer,
                model_state_dict=tensors["model"],
                optim_state_dict=tensors["optimizer"],
            )

    def _tensors(self) -> dict[str, Any]:
        # before the first step there are no moments, and asking for them would make some
        if self.step == 0:
            return {"model": get_model_state_dict(self.model)}
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    @classmethod
    def read_about(cls, folder: Path, name: str) -> dict[str, Any]:
        about: dict[str, Any] = json.loads((newest(folder / f"{name}.shards") / ABOUT).read_text())
        return about

    def gather(self) -> Run:
        """In the first process a plain run with all weights, saved as `train_lm.py` does it; in the
        others, which get no weights, this run."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        weights = get_model_state_dict(self.model, options=options)
        if self.rank > 0:
            return self
        whole = Run(self.name, self.model.config, self.options, str(self.device), self.folder)
        whole.model.load_state_dict(weights)
        whole.take_up(self.describe())
        whole.save()
        return whole


def newest(path: Path) -> Path:
    """The last complete checkpoint; exits with a sentence when there is none."""
    complete = sorted(path.glob(f"step-*/{ABOUT}"))
    if not complete:
        raise SystemExit(f"No checkpoint at {path}: train first, or name its folder with --out.")
    return complete[-1].parent
