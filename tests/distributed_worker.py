"""What each process of `tests/test_distributed.py` runs: python distributed_worker.py CHECK ..."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from atlas_ext.models import Atlas, AtlasConfig

STEPS = 2


def make_model() -> Atlas:
    torch.manual_seed(0)
    size = {"vocab_size": 61, "hidden_size": 32, "num_layers": 2, "num_heads": 4}
    return Atlas(AtlasConfig(**size, window=6, chunk_size=4, ns_every=4))


def trained(model: nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The model's full weights after some steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    weights = {}
    for name, parameter in model.named_parameters():
        full = parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter
        weights[name.removeprefix("module.")] = full.detach()
    return weights


def check_equal() -> None:
    """Two processes on half a batch each make the steps that one makes on the whole batch."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(61, (4, 16), generator=generator)
    share = ids.chunk(dist.get_world_size())[dist.get_rank()]
    expected = trained(make_model(), ids)
    sharded = make_model()
    for block in sharded.blocks:
        fully_shard(block)
    fully_shard(sharded)
    start = make_model().state_dict()
    for model in (DistributedDataParallel(make_model()), sharded):
        weights = trained(model, share)
        assert weights.keys() == expected.keys()
        for name, weight in weights.items():
            torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6)
        assert not torch.equal(weights["embedding.weight"], start["embedding.weight"])


def check_resume(folder: str, data: str) -> None:
    """Interrupted and taken up from its shards, a run is the same, bit for bit."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    import train_lm

    arguments = [
        "--data", data, "--hidden", "32", "--layers", "1", "--heads", "2", "--steps", "6",
        "--batch", "4", "--seq-len", "32", "--ablations",
    ]  # fmt: skip
    text = train_lm.load_text([data])

    def runs(part: str, *more: str) -> list[train_lm.Run]:
        args = train_lm.make_parser().parse_args(["--out", f"{folder}/{part}", *arguments, *more])
        return train_lm.resume_runs(args) if args.resume else train_lm.make_runs(args)

    try:
        runs("refused", "--batch", "3")
    except ValueError as error:
        assert "--batch: wanted a multiple of the 2 processes, got 3" in str(error)
    else:
        raise AssertionError("a batch of 3 was divided by 2")
    (whole,) = runs("whole")
    assert whole.train(text)
    (started,) = runs("parts")
    started.save()  # as the program does
    assert not started.train(text, stop_after=4, save_every=3)
    (resumed,) = runs("parts", "--resume")
    assert resumed.step == 4 and resumed.train(text)
    assert resumed.history.loss == whole.history.loss
    assert resumed.history.held_out == whole.history.held_out
    for name, parameter in whole.model.named_parameters():
        other = resumed.model.get_parameter(name)
        assert torch.equal(parameter.to_local(), other.to_local()), name
    moments = whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    for index, tensors in moments[0].items():
        for name, tensor in tensors.items():
            other = moments[1][index][name]
            assert torch.equal(local(tensor), local(other)), (index, name)


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    {"equal": check_equal, "resume": check_resume}[sys.argv[1]](*sys.argv[2:])
    dist.barrier()
    dist.destroy_process_group()
    sys.stdout.flush()
    # A thread of torch's that asks for the interpreter while this ends can abort the process.
    os._exit(0)
