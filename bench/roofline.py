"""What a case must compute and move, and what this machine can do at best.

`python -m bench.roofline newton_schulz 512 64 64 --dtype bfloat16 --device h100` prints the work of
a CUDA kernel and its floor on a device that need not be here; so do `omega_rule` and
`omega_rule_update`.

Counts are of the useful work: the products of the chunk form, each once, a multiply-add being two
operations. A backward is counted as twice its forward's products; recomputation counts as nothing,
and neither do coefficients, decays and sums, which are small beside the products
(docs/performance.md).
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench import cuda_work, omega_work
from bench.cuda_work import useful_newton_schulz as newton_schulz_flops

Shapes = tuple[tuple[int, int], ...]  # (out, in) of each matrix of a memory


def state_size(shapes: Shapes) -> int:
    """Weights of one memory."""
    return sum(out * width for out, width in shapes)


def error_size(shapes: Shapes) -> int:
    """Multiply-adds of one error signal: through all matrices, and back through the last one."""
    back = shapes[-1][0] * shapes[-1][1] if len(shapes) > 1 else 0
    return state_size(shapes) + back


def poly_features_flops(rows: int, dim: int) -> float:
    """Degree 2: product and weight of each quadratic monomial."""
    return 2.0 * rows * dim * (dim + 1) / 2


def omega_rule_flops(
    tokens: int, heads: int, key: int, shapes: Shapes, chunk: int, window: int
) -> float:
    """Dual form, momentum; T a multiple of C. Triangles are counted as triangles."""
    chunks = tokens // chunk
    span = chunk + window - 1
    first = chunk  # the first chunk has no overhang, the last one's state update is not needed
    size = state_size(shapes)
    errors = 2.0 * error_size(shapes) * ((chunks - 1) * span + first)
    states = 4.0 * size * ((chunks - 2) * span + first) if chunks > 1 else 0.0
    reads = 4.0 * size * chunk * chunks
    pairs = chunks * chunk * ((chunk + 1) / 2 + window - 1) - chunk * (window - 1)
    # scores of the keys and, if deep, of the hidden vectors; then each matrix' errors are summed
    widths = key + (shapes[-1][1] if len(shapes) > 1 else 0) + sum(out for out, _ in shapes)
    return heads * (errors + states + reads + 2.0 * pairs * widths)


def exp_omega_rule_flops(
    tokens: int, heads: int, key: int, shapes: Shapes, chunk: int, window: int
) -> float:
    """The l2 objective, momentum; shapes as omega_rule's, the first one's height that of the rows.

    Each chunk's window rows and queries meet all keys before it (and its window); a deep memory has
    raw-input maps of the first shape, and its last matrix goes as in omega_rule.
    """
    chunks, row = tokens // chunk, shapes[0][0]
    products = 0.0
    for n in range(chunks):
        overhang = min(window - 1, n * chunk)
        before, rows = n * chunk, chunk + overhang
        products += rows * before * (key + row)  # error signals
        products += chunk * before * (key + 2 * row)  # reads of rows and momenta
        pairs = chunk * ((chunk + 1) / 2 + overhang)
        products += pairs * row + chunk * (chunk + 1) / 2 * key  # the window's scores: once
        if len(shapes) > 1:
            size = shapes[1][0] * shapes[1][1]
            products += (rows + chunk) * row * key
            products += size * (2 * rows + 2 * chunk + (2 * rows if n + 1 < chunks else 0))
            products += pairs * (shapes[1][0] + row)
    return heads * 2.0 * products


def omega_rule_muon_flops(
    tokens: int,
    heads: int,
    shapes: Shapes,
    chunk: int,
    window: int,
    steps: int,
    every: int = 1,
) -> float:
    """Newton-Schulz at the writes, the window's rank-one updates of S, the scan of M, the read."""
    chunks = tokens // chunk
    errors = 2.0 * error_size(shapes) * (tokens + (chunks - 1) * (window - 1))
    token = (2.0 * window + 2.0 + 3.0 + 2.0) * state_size(shapes)
    schulz = sum(newton_schulz_flops(tokens // every, *shape, steps) for shape in shapes)
    return heads * (errors + tokens * token + schulz)


def omega_rule_update_flops(
    sequences: int, heads: int, shapes: Shapes, window: int, steps: int = 0, every: int = 1
) -> float:
    """One token: the window's error signals and rank-one updates of S, M, and the read."""
    errors = 2.0 * window * error_size(shapes)
    token = (2.0 * window + 2.0 + 3.0 + 2.0) * state_size(shapes)
    schulz = sum(newton_schulz_flops(1, *shape, steps) for shape in shapes) / every
    return sequences * heads * (errors + token + schulz)


def omega_rule_update_bytes(sequences: int, heads: int, shapes: Shapes) -> int:
    """Float32: weights and momentum are read and written, the chunk's weights are read.

    Left out: token and window (2 % of a linear memory, less of others), and the chunk's weights
    that are written once in C tokens.
    """
    return 4 * 5 * sequences * heads * state_size(shapes)


FMA_LOOP = r"""
typedef float vec __attribute__((vector_size(64)));
void fma_loop(long count, float* out) {
  vec sums[14] = {0}, x = {0}, y = {0};
  x += out[0];
  y += out[1];
  for (long k = 0; k < count; ++k) {
#pragma GCC unroll 14
    for (int i = 0; i < 14; ++i) sums[i] = sums[i] * x + y;
  }
  for (int i = 1; i < 14; ++i) sums[0] += sums[i];
  for (int lane = 0; lane < 16; ++lane) out[lane] = sums[0][lane];
}
"""


def best_of(run: Callable[[], object], rounds: int = 9) -> float:
    """Seconds of the fastest of `rounds` calls, after two more for warming up.

    One thread: of the processor, which neighbours do not slow down.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = []
    for _ in range(rounds + 2):
        start = clock()
        run()
        seconds.append(clock() - start)
    return min(seconds[2:])


def fma_peak(threads: int) -> float | None:
    """Operations/s of independent multiply-adds in registers, on all threads; None without gcc."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    flags = ["-O3", "-march=native", "-ffp-contract=fast"]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "fma.c"), Path(folder, "fma.so")
        source.write_text(FMA_LOOP)
        command = [compiler, *flags, "-shared", "-fPIC", str(source), "-o", str(library)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return None
        loop = ctypes.CDLL(str(library)).fma_loop
    count = 2_000_000

    def worker() -> None:
        loop(ctypes.c_long(count), (ctypes.c_float * 16)(0.999, 1.0))

    def all_threads() -> None:
        if threads == 1:  # here, where the processor's clock sees all of it
            return worker()
        team = [threading.Thread(target=worker) for _ in range(threads)]
        for member in team:
            member.start()
        for member in team:
            member.join()

    return threads * count * 14 * 16 * 2 / best_of(all_threads)


def copy_rates() -> dict[str, float]:
    """Bytes/s, read and written, of a copy into touched pages and into fresh ones."""
    big = torch.randn(1 << 24)
    copy = torch.empty_like(big)
    traffic = 2 * big.nbytes
    return {
        "copy": traffic / best_of(lambda: copy.copy_(big)),
        "clone": traffic / best_of(lambda: big.clone()),
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.roofline")
    ops = parser.add_subparsers(dest="op", required=True)
    poly, schulz = ops.add_parser("poly_features"), ops.add_parser("newton_schulz")
    poly.add_argument("rows", type=int)
    poly.add_argument("dim", type=int, metavar="K")
    poly.add_argument("--degree", type=int, default=2, choices=(1, 2, 3, 4))
    for name in ("batch", "m", "n"):
        schulz.add_argument(name, type=int)
    schulz.add_argument("--steps", type=int, default=5, help="of Muon's coefficients")
    rule, update = ops.add_parser("omega_rule"), ops.add_parser("omega_rule_update")
    rule.add_argument("tokens", type=int, help="of one sequence")
    update.add_argument("rows", type=int, help="one token each")
    for each in (rule, update):
        memory_arguments(each)
    for each in (poly, schulz, rule, update):
        each.add_argument("--dtype", choices=tuple(cuda_work.BYTES), default="float32")
        each.add_argument("--device", choices=tuple(cuda_work.DEVICES), default="h100")
        each.add_argument("--registers", type=int, default=0, help="of a thread, from ptxas -v")
    for each in (schulz, rule):
        each.add_argument("--precision", choices=("highest", "high"), default="highest")
    for each in (poly, schulz, rule):
        each.add_argument("--backward", action="store_true")
    return parser.parse_args(arguments)


def memory_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", type=int, metavar="K")
    parser.add_argument("value", type=int, metavar="V")
    parser.add_argument("--hidden", type=int, default=0, metavar="F")
    parser.add_argument("--memory", choices=omega_work.MEMORIES, default="linear")
    parser.add_argument("--degree", type=int, default=0, choices=range(5))
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--no-momentum", action="store_true")
    parser.add_argument("--ns-steps", type=int, default=0)
    parser.add_argument("--ns-every", type=int, default=1)


def rule_of(options: argparse.Namespace) -> omega_work.OmegaRule:
    return omega_work.OmegaRule(
        *(options.key, options.value, options.hidden, options.window, options.chunk),
        degree=options.degree,
        memory=options.memory,
        momentum=not options.no_momentum,
        ns_steps=options.ns_steps,
        ns_every=options.ns_every,
    )


def work_of(options: argparse.Namespace) -> cuda_work.Work:
    device = cuda_work.DEVICES[options.device]
    if options.op == "omega_rule_update":
        return omega_work.omega_rule_update(
            *(rule_of(options), options.rows, options.heads, options.dtype)
        )
    common = {"backward": options.backward}
    if options.op == "omega_rule":
        sizes = (options.sequences, options.heads, options.tokens)
        tf32 = options.precision == "high"
        return omega_work.omega_rule(
            rule_of(options), *sizes, options.dtype, device, tf32=tf32, **common
        )
    if options.op == "poly_features":
        sizes = (options.rows, options.dim, options.degree)
        return cuda_work.poly_features(*sizes, options.dtype, device, **common)
    return cuda_work.newton_schulz(
        *(options.batch, options.m, options.n, options.dtype, device),
        linear=(cuda_work.MUON_A,) * options.steps,
        tf32=options.precision == "high",
        **common,
    )


def lines(work: cuda_work.Work, device: cuda_work.Device, registers: int = 0) -> list[str]:
    """The printed account of one call."""
    seconds, limit = work.floor(device)
    text = [
        f"kernel      {work.kernel}, {work.arithmetic} arithmetic on {device.name}",
        f"operations  {work.executed:.4g} executed, {work.useful:.4g} useful",
        f"bytes       {work.moved:.4g} read and written, {work.scratch:.4g} through scratch",
        f"intensity   {work.intensity:.1f} operations a byte",
        f"floor       {seconds * 1e6:.2f} us, set by {limit}",
    ]
    if work.threads:
        most = device.blocks(work.shared, work.threads, registers)
        waves = work.blocks / (most * device.multiprocessors)
        text.append(
            f"blocks      {work.blocks} of {work.threads} threads, {work.shared / 1024:.1f} KiB; "
            f"{most} on a multiprocessor, {waves:.2f} waves"
        )
    if 0 < work.blocks < device.multiprocessors:
        alone = work.alone(device)
        text.append(
            f"{work.blocks} of {device.multiprocessors} multiprocessors work: "
            f"no less than {alone * 1e6:.2f} us"
        )
    return text


if __name__ == "__main__":
    asked = parse(None)
    print("\n".join(lines(work_of(asked), cuda_work.DEVICES[asked.device], asked.registers)))
