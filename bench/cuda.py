"""The CUDA kernels against eager PyTorch: `python -m bench.run --device cuda|emulated`.

Emulated kernels are checked, never timed. On a GPU every call starts with a cold second cache and
with its launches queued, so that neither the host nor an earlier call is measured (docs/cuda.md).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atlas_ext import testing
from bench.cases.base import leaves_of, names_of
from bench.cuda_cases import CASES, BenchCase, CudaCase
from bench.report import markdown
from bench.timing import DIRECTIONS, Inputs, evaluate, map_inputs, prepare, quartiles

__all__ = ["CASES", "CudaCase", "run"]

WARM_UP, SLEEP_CYCLES = 3, 2_000_000

DTYPES = {
    "float32": (torch.float32, "highest"),
    "float32 high": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "high"),
    "float16": (torch.float16, "high"),
}


@contextmanager
def precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def check(case: BenchCase, dtype: str, device: str) -> dict[str, tuple[float, float]]:
    """Error and what is allowed, of the output and the gradients, against float64."""
    inputs = case.tensors(DTYPES[dtype][0], device, checked=True)
    direction = case.directions("cuda" if device == "cuda" else "emulated")[-1]

    def results(who: str, inputs: Inputs) -> list[Tensor]:
        generator = torch.Generator().manual_seed(1)
        operator = case.operator(who)
        with torch.no_grad():
            out = operator(inputs)
        grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
        # Rounded, so that all see the same.
        grad = grad.to(DTYPES[dtype][0]).to(device=out.device, dtype=out.dtype)
        return evaluate(operator, leaves_of(inputs), direction, grad)

    expected = results("reference", map_inputs(Tensor.double, inputs))
    with testing.emulated() if device == "cpu" else nullcontext():
        ours = results("ours", inputs)
    theirs = results("eager", inputs)
    names = ["output", *(f"grad_{name}" for name in names_of(inputs))]
    errors = {}
    for name, a, b, truth in zip(names, ours, theirs, expected, strict=False):
        allowed = case.allowed(dtype) + 4 * testing.relative_error(b, truth)
        errors[name] = (testing.relative_error(a, truth), allowed)
    return errors


class Stopwatch:
    """Seconds of single calls on the GPU's own clock."""

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties(0).L2_cache_size
        self.flushed = torch.empty(4 * cache, dtype=torch.uint8, device="cuda")

    def __call__(self, call: Callable[[], object]) -> float:
        self.flushed.zero_()
        torch.cuda._sleep(SLEEP_CYCLES)  # the host queues the call meanwhile
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3

    def medians(self, calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        """Of `rounds` rounds in which all take turns."""
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(WARM_UP + rounds):
            for name, call in calls.items():
                seconds[name].append(self(call))
        return {name: quartiles(values[WARM_UP:])[1] for name, values in seconds.items()}


def ceilings(watch: Stopwatch, rounds: int) -> dict[str, float]:
    """This GPU's own best: byte/s of a copy, operations/s of a large product of each dtype."""
    source = torch.randn(1 << 27, device="cuda")
    target = torch.empty_like(source)
    copy = watch.medians({"copy": lambda: target.copy_(source)}, rounds)["copy"]
    found = {"copy": 2 * source.nbytes / copy}
    for name, (dtype, setting) in DTYPES.items():
        a, b, out = (torch.randn(8192, 8192, device="cuda").to(dtype) for _ in range(3))
        with precision(setting):
            product = lambda a=a, b=b, out=out: torch.mm(a, b, out=out)  # noqa: E731
            found[name] = 2 * 8192**3 / watch.medians({"mm": product}, rounds)["mm"]
    return found


def measure(
    case: BenchCase,
    dtype: str,
    direction: str,
    watch: Stopwatch,
    best: dict[str, float],
    rounds: int,
) -> dict[str, Any]:
    inputs = case.tensors(DTYPES[dtype][0], "cuda")
    with torch.no_grad():
        grad = torch.randn_like(case.operator("ours")(inputs))
    calls = {who: prepare(case.operator(who), inputs, direction, grad) for who in ("ours", "eager")}
    seconds = watch.medians(calls, rounds)
    parts = [case.work(dtype.split()[0], DTYPES[dtype][1] == "high", False)]
    if direction != DIRECTIONS[0]:
        parts.append(case.work(dtype.split()[0], DTYPES[dtype][1] == "high", True))
    bandwidth = sum(part.moved for part in parts) / seconds["ours"]
    rate = sum(part.useful for part in parts) / seconds["ours"]
    bound = case.bound(dtype)
    share = (bandwidth if bound == "copy" else rate) / best[bound]
    return {"seconds": seconds, "bytes/s": bandwidth, "flop/s": rate, "share": share, "of": bound}


def row(case: BenchCase, dtype: str, direction: str, found: dict[str, Any]) -> tuple[str, ...]:
    ours, theirs = found["seconds"]["ours"], found["seconds"]["eager"]
    return (
        *(case.name, dtype, direction, f"{1e6 * ours:.1f}", f"{1e6 * theirs:.1f}"),
        *(f"{theirs / ours:.2f}", f"{found['bytes/s'] / 1e9:.0f}"),
        *(f"{found['flop/s'] / 1e12:.1f}", f"{found['share']:.0%} {found['of']}"),
    )


HEADER = (
    *("case", "dtype", "direction", "ours us", "eager us", "ratio"),
    *("GB/s", "TFLOP/s", "of ceiling"),
)


def unavailable(device: str) -> str | None:
    """Why nothing can run on `device`; None: it can."""
    if device == "emulated":
        try:
            with testing.emulated():
                return None
        except ImportError as error:
            return str(error)
    if not torch.cuda.is_available():
        return "no CUDA device that this torch can use: nothing was measured"
    if "cuda_runtime" not in torch.ops.atlas_ext.build_info():
        return "this atlas_ext was built without CUDA: nothing was measured"
    return None


def run(device: str, words: str, rounds: int, output: Path) -> int:
    """Checks all cases whose names hold `words`, and on a GPU times those that are right."""
    reason = unavailable(device)
    if reason is not None:
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    timed, wrong, rows, records = device == "cuda", 0, [HEADER], []
    watch = Stopwatch() if timed else None
    best = ceilings(watch, rounds) if watch else {}
    for case in (c for c in CASES if all(word in c.name for word in words.split())):
        if not case.directions(device):
            print(f"{case.name}: no CUDA kernels in this build")
            continue
        for dtype, (_, setting) in DTYPES.items():
            if dtype == "float32 high" and case.op == "poly_features":
                continue  # no products there
            with precision(setting):
                errors = check(case, dtype, "cuda" if timed else "cpu")
                right = all(error <= allowed for error, allowed in errors.values())
                text = ", ".join(f"{n} {e:.1e} (<= {a:.1e})" for n, (e, a) in errors.items())
                print(f"{case.name}, {dtype}: {'right' if right else 'WRONG'}: {text}", flush=True)
                wrong += not right
                for direction in case.directions(device) if watch and right else ():
                    found = measure(case, dtype, direction, watch, best, rounds)
                    rows.append(row(case, dtype, direction, found))
                    records.append(
                        {**case.record(), "dtype": dtype, "direction": direction} | found
                    )
    if watch:
        machine = f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
        limits = ", ".join(f"{name} {value / 1e12:.2f}e12/s" for name, value in best.items())
        table = f"{machine}; measured: {limits}\n\n{markdown(rows)}\n"
        output.parent.mkdir(parents=True, exist_ok=True)
        report = {"machine": machine, "ceilings": best, "runs": records}
        output.write_text(json.dumps(report, indent=1))
        output.with_suffix(".md").write_text(table)
        print(f"\n{table}\nwrote {output} and its table (.md)")
    return int(wrong > 0)
