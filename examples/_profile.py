"""Where the time of a training step goes."""

from __future__ import annotations

import copy
import os

import torch
from _training import Run
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

# the profiler's library writes "profiler_start" lines of its own to the terminal otherwise
os.environ.setdefault("KINETO_LOG_LEVEL", "9")
STEPS = 3
# first match wins; names of PyTorch's own operators
KINDS = (
    ("matrix products of the linear layers", ("mm", "bmm", "linear")),
    ("short convolution", ("conv",)),
    ("optimiser", ("adam",)),
    ("normalisation", ("norm",)),
    ("loss", ("softmax", "nll_loss")),
)


def operator_shares(run: Run, ids: Tensor) -> dict[str, float]:
    """Share of a training step's time by kind of operator, largest first; they sum to 1.

    Measured over a few steps of a copy: the run itself is not touched. The operators of
    `atlas_ext` are listed by name, with all that they call.
    """
    twin = copy.copy(run)
    twin.model = copy.deepcopy(run.model)
    twin.optimizer = torch.optim.AdamW(twin.model.parameters(), lr=0.0)
    twin.scheduler = torch.optim.lr_scheduler.ConstantLR(twin.optimizer)
    twin.train_step(ids)
    cuda = run.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            twin.train_step(ids)
    time: dict[str, float] = {}
    for event in profiler.events():
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        kind = _kind(event)
        time[kind] = time.get(kind, 0.0) + spent
    total = sum(time.values())
    return {kind: time[kind] / total for kind in sorted(time, key=lambda k: -time[k])}


def _kind(event: FunctionEvent) -> str:
    ancestor = event
    while ancestor is not None:
        if ancestor.name.startswith("atlas_ext::"):
            return ancestor.name
        ancestor = ancestor.cpu_parent
    name = event.name.lower()
    for kind, parts in KINDS:
        if any(part in name for part in parts):
            return kind
    return "everything else"
