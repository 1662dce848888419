"""The clock, the memory and the ceilings of the machine that is measured."""

from __future__ import annotations

import platform
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from bench import memory, roofline
from bench.setting import DTYPES, Setting
from bench.timing import Call, interleave, quartiles, stopwatch

MIB = 1 << 20


class Device(Protocol):
    @property
    def clock(self) -> str:
        """ "wall", which goes on while others use the processors, or another that does not."""

    def seconds(self, call: Call) -> float:
        """Of one call."""

    def peak_mib(self, call: Call) -> float:
        """Memory that one call needs beside what is held already; results count."""

    def ceilings(self, dtypes: tuple[str, ...]) -> dict[str, float]:
        """Operations/s of a large product, "mm <dtype>", and bytes/s of a large "copy"."""

    def describe(self) -> dict[str, Any]:
        """Name of the machine, and how it is used."""


class Cpu:
    """One thread: the time that the processor gives to this process; more: the wall's."""

    @property
    def clock(self) -> str:
        return "processor" if torch.get_num_threads() == 1 else "wall"

    def seconds(self, call: Call) -> float:
        if self.clock == "wall":
            return stopwatch(call)
        start = time.process_time()
        call()
        return time.process_time() - start

    def peak_mib(self, call: Call) -> float:
        return memory.peak_mib(call)

    def ceilings(self, dtypes: tuple[str, ...]) -> dict[str, float]:
        found = roofline.copy_rates() | {f"mm {name}": product_rate(name) for name in dtypes}
        fma = roofline.fma_peak(torch.get_num_threads())
        return found if fma is None else found | {"fma": fma}

    def describe(self) -> dict[str, Any]:
        return {"name": cpu_model(), "threads": torch.get_num_threads()}


def product_rate(dtype: str, size: int = 2048) -> float:
    """Operations/s of torch.mm on the CPU."""
    a, b, out = (torch.randn(size, size).to(DTYPES[dtype][0]) for _ in range(3))
    return 2 * size**3 / roofline.best_of(lambda: torch.mm(a, b, out=out))


class Cuda:
    """The GPU's own clock, with a cold second cache and the launches queued (docs/cuda.md)."""

    SLEEP_CYCLES, clock = 2_000_000, "GPU"

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self._flushed = torch.empty(4 * cache, dtype=torch.uint8, device="cuda")

    def seconds(self, call: Call) -> float:
        self._flushed.zero_()
        torch.cuda._sleep(self.SLEEP_CYCLES)  # the host queues the call meanwhile
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    def peak_mib(self, call: Call) -> float:
        call()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / MIB

    def ceilings(self, dtypes: tuple[str, ...]) -> dict[str, float]:
        source = torch.randn(1 << 27, device="cuda")
        target = torch.empty_like(source)
        found = {"copy": 2 * source.nbytes / self._median(lambda: target.copy_(source))}
        for name in dtypes:
            a, b, out = (torch.randn(8192, 8192, device="cuda").to(DTYPES[name][0]) for _ in "abo")
            with Setting("cuda", name).active():
                product = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)  # noqa: E731
                found[f"mm {name}"] = 2 * 8192**3 / self._median(product)
        return found

    def _median(self, call: Call) -> float:
        return quartiles(interleave({"one": call}, self.seconds, 9)["one"])[1]

    def describe(self) -> dict[str, Any]:
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        driver = f"CUDA {torch.version.cuda}"
        return {"name": f"{torch.cuda.get_device_name()} ({capability}, {driver})", "threads": None}


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
