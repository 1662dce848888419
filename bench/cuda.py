"""The CUDA kernels against eager PyTorch: `python -m bench.run --device cuda|emulated`.

Emulated kernels are checked, never timed. On a GPU every call starts with a cold second cache and
with its launches queued, so that neither the host nor an earlier call is measured (docs/cuda.md).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import atlas_ext
from atlas_ext import reference, testing
from bench import cuda_work, eager
from bench.report import markdown
from bench.timing import DIRECTIONS, evaluate, prepare, quartiles

WARM_UP, SLEEP_CYCLES = 3, 2_000_000
# Relative errors that are allowed beside four times those of eager PyTorch in the same dtype;
# eager on the CPU has no tf32.
ALLOWED = {"float32": 2e-5, "float32 high": 5e-2, "bfloat16": 2e-2, "float16": 5e-3}


@dataclass(frozen=True)
class CudaCase:
    op: str
    shape: tuple[int, ...]  # the first size is the batch
    check_batch: int = 3

    @property
    def name(self) -> str:
        return f"{self.op} {list(self.shape)}"

    def inputs(self, dtype: torch.dtype, device: str, batch: int | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        make = testing.conditioned if self.op == "newton_schulz" else testing.normal
        # One matrix often over: condition numbers are made by the host's svd.
        x = make(generator, min(batch or self.shape[0], 64), *self.shape[1:])
        x = x.repeat(-(-(batch or self.shape[0]) // len(x)), *[1] * (x.dim() - 1))
        return x[: batch or self.shape[0]].to(device=device, dtype=dtype)

    def work(self, dtype: str, tf32: bool, backward: bool) -> cuda_work.Work:
        device = cuda_work.DEVICES["h100"]
        if self.op == "poly_features":
            return cuda_work.poly_features(*self.shape, 2, dtype, device, backward=backward)
        return cuda_work.newton_schulz(*self.shape, dtype, device, tf32=tf32, backward=backward)


CASES = (
    CudaCase("newton_schulz", (4096, 16, 16)),
    CudaCase("newton_schulz", (4096, 64, 16)),
    CudaCase("newton_schulz", (2048, 64, 64)),
    CudaCase("newton_schulz", (1024, 153, 64), 2),
    CudaCase("newton_schulz", (1024, 128, 128), 1),
    CudaCase("newton_schulz", (16, 512, 512), 1),
    CudaCase("poly_features", (65536, 16), 9),
    CudaCase("poly_features", (32768, 64), 9),
)
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


def function(module: Any, op: str) -> Callable[[dict[str, Any]], Tensor]:
    return lambda inputs: getattr(module, op)(inputs["x"])


def check(case: CudaCase, dtype: str, device: str) -> dict[str, tuple[float, float]]:
    """Error and what is allowed, of the output and the gradient, against float64."""
    x = case.inputs(DTYPES[dtype][0], device, case.check_batch)
    wide = x.double()

    def results(module: Any, x: Tensor) -> list[Tensor]:
        leaf = x.detach().requires_grad_()
        generator = torch.Generator().manual_seed(1)
        operator = function(module, case.op)
        grad = torch.randn(operator({"x": x}).shape, generator=generator, dtype=torch.float64)
        # Rounded, so that all see the same.
        grad = grad.to(DTYPES[dtype][0]).to(device=x.device, dtype=x.dtype)
        return evaluate(operator, {"x": leaf}, DIRECTIONS[1], grad)

    expected = results(reference, wide)
    with testing.emulated() if device == "cpu" else nullcontext():
        ours = results(atlas_ext, x)
    theirs = results(eager, x)
    errors = {}
    for name, a, b, truth in zip(("output", "grad_x"), ours, theirs, expected, strict=True):
        allowed = ALLOWED[dtype] + 4 * testing.relative_error(b, truth)
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
    case: CudaCase,
    dtype: str,
    direction: str,
    watch: Stopwatch,
    best: dict[str, float],
    rounds: int,
) -> dict[str, Any]:
    x = case.inputs(DTYPES[dtype][0], "cuda")
    with torch.no_grad():
        grad = torch.randn_like(function(atlas_ext, case.op)({"x": x}))
    calls = {
        name: prepare(function(module, case.op), {"x": x}, direction, grad)
        for name, module in (("ours", atlas_ext), ("eager", eager))
    }
    seconds = watch.medians(calls, rounds)
    parts = [case.work(dtype.split()[0], DTYPES[dtype][1] == "high", False)]
    if direction != DIRECTIONS[0]:
        parts.append(case.work(dtype.split()[0], DTYPES[dtype][1] == "high", True))
    bandwidth = sum(part.moved for part in parts) / seconds["ours"]
    rate = sum(part.useful for part in parts) / seconds["ours"]
    bound = "copy" if case.op == "poly_features" else dtype
    share = (bandwidth if bound == "copy" else rate) / best[bound]
    return {"seconds": seconds, "bytes/s": bandwidth, "flop/s": rate, "share": share, "of": bound}


def row(case: CudaCase, dtype: str, direction: str, found: dict[str, Any]) -> tuple[str, ...]:
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
        for dtype, (_, setting) in DTYPES.items():
            if dtype == "float32 high" and case.op == "poly_features":
                continue  # no products there
            with precision(setting):
                errors = check(case, dtype, "cuda" if timed else "cpu")
                right = all(error <= allowed for error, allowed in errors.values())
                text = ", ".join(f"{n} {e:.1e} (<= {a:.1e})" for n, (e, a) in errors.items())
                print(f"{case.name}, {dtype}: {'right' if right else 'WRONG'}: {text}", flush=True)
                wrong += not right
                for direction in DIRECTIONS if watch is not None and right else ():
                    found = measure(case, dtype, direction, watch, best, rounds)
                    rows.append(row(case, dtype, direction, found))
                    records.append({**asdict(case), "dtype": dtype, "direction": direction} | found)
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
