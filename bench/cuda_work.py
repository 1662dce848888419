"""What the CUDA kernels execute and move, counted from their plans (docs/cuda.md).

Executed operations follow the kernels: sides padded to tiles, stretches of steps on elongated
matrices, recomputation in the backward. Useful operations are those of bench/roofline.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MUON_A = 3.4445
RESERVED = 1 << 10  # of each block, by the system


@dataclass(frozen=True)
class Device:
    """Datasheet numbers; peaks are dense."""

    name: str
    capability: int
    multiprocessors: int
    bandwidth: float  # byte/s
    peaks: dict[str, float]  # operations/s by arithmetic
    block_shared: int  # bytes that a block may have
    shared: int  # bytes of a multiprocessor
    threads: int = 2048  # of a multiprocessor

    def blocks(self, shared: int, threads: int, registers: int = 0) -> int:
        """Blocks that a multiprocessor holds; registers of a thread, 0 where they do not count."""
        limits = [self.shared // (shared + RESERVED), self.threads // threads, 32]
        if registers:
            limits.append((1 << 16) // (threads * math.ceil(registers / 8) * 8))
        return min(limits)


def _peaks(half: float, tf32: float, simple: float) -> dict[str, float]:
    return {"half": half * 1e12, "tf32": tf32 * 1e12, "float": simple * 1e12}


DEVICES = {
    "a100": Device(
        "A100 SXM 80 GB", 80, 108, 2.04e12, _peaks(312, 156, 19.5), 163 << 10, 164 << 10
    ),
    "h100": Device("H100 SXM", 90, 132, 3.35e12, _peaks(989, 494, 67), 227 << 10, 228 << 10),
}


@dataclass(frozen=True)
class Work:
    """One call of one kernel."""

    kernel: str
    arithmetic: str  # key of Device.peaks
    useful: float  # operations of the mathematics
    executed: float  # operations that the kernel makes, padding and recomputation included
    moved: float  # bytes that any kernel must move
    scratch: float = 0.0  # bytes more that go through the second cache, or past it
    blocks: int = 0
    threads: int = 0
    shared: int = 0  # bytes of a block

    @property
    def intensity(self) -> float:
        return self.executed / self.moved

    def floor(self, device: Device) -> tuple[float, str]:
        """Seconds below which no run can be, and what sets them."""
        memory = self.moved / device.bandwidth
        compute = self.executed / device.peaks[self.arithmetic]
        return (memory, "memory") if memory >= compute else (compute, "arithmetic")

    def alone(self, device: Device) -> float:
        """Seconds of the arithmetic where every block has a multiprocessor to itself."""
        return self.executed / device.peaks[self.arithmetic] * device.multiprocessors / self.blocks


def stretches(linear: Sequence[float], elongated: bool) -> Iterator[int]:
    """Lengths of the stretches, from the coefficients a of the steps (newton_schulz_block.cuh)."""
    begin = 0
    while begin < len(linear):
        end, growth = begin + 1, 1.0
        while elongated and end < len(linear):
            growth *= linear[end - 1] ** 2
            if growth > 256:
                break
            end += 1
        yield end - begin
        begin = end


@dataclass(frozen=True)
class NewtonSchulz:
    """The fused kernel's view of matrices [m, n]."""

    m: int
    n: int
    dtype: str
    capability: int
    tf32: bool = False
    backward: bool = False

    @property
    def arithmetic(self) -> str:
        if self.dtype == "float16":
            return "half"
        if self.capability < 80:
            return "float"
        if self.dtype == "bfloat16":
            return "tf32" if self.backward else "half"
        return "tf32" if self.tf32 else "float"

    @property
    def element(self) -> int:  # bytes in shared memory
        return 2 if self.arithmetic == "half" else 4

    @property
    def size(self) -> int | None:  # the shorter side, padded; None: no kernel has it
        most = 64 if self.backward and self.element == 4 else 128
        sizes = (size for size in (16, 32, 64, 128) if min(self.m, self.n) <= size <= most)
        return next(sizes, None)

    @property
    def rows(self) -> int:
        return math.ceil(max(self.m, self.n) / 16) * 16

    @property
    def elongated(self) -> bool:
        return max(self.m, self.n) >= 2 * min(self.m, self.n)

    @property
    def matrices(self) -> int:  # of a block
        return max(1, 64 // (self.size or 64))

    @property
    def leading(self) -> int:
        return (self.size or 0) + (8 if self.element == 2 else 0)

    @property
    def shared(self) -> int:  # bytes of a block
        square, x = (self.size or 0) * self.leading, self.rows * self.leading
        each = 2 * x + 3 * square if self.backward else x + (3 if self.elongated else 1) * square
        return self.matrices * each * self.element

    def is_fused(self, block_shared: int) -> bool:
        return self.size is not None and self.shared + (1 << 10) <= block_shared

    def executed(self, linear: Sequence[float]) -> float:
        """Operations of the tile products on one matrix."""
        s, r = float(self.size or 0), float(self.rows)
        square, tall = 2 * s**3, 2 * s * s * r
        steps = len(linear)
        if self.backward:
            return (steps - 1) * (2 * tall + square) + steps * (4 * tall + 2 * square)
        lengths = stretches(linear, self.elongated)
        return sum(2 * tall + (4 * length - 3) * square for length in lengths)

    def tape(self, steps: int) -> int:
        """Bytes of iterates that one matrix writes and reads back."""
        return 2 * steps * self.rows * self.leading * self.element


def useful_newton_schulz(batch: int, m: int, n: int, steps: int) -> float:
    """Per step: Gram matrix, its square, and the product with X."""
    short, long = min(m, n), max(m, n)
    return batch * steps * (4.0 * short * short * long + 2.0 * short**3)


def newton_schulz(
    batch: int,
    m: int,
    n: int,
    dtype: str,
    device: Device,
    *,
    linear: Sequence[float] = (MUON_A,) * 5,
    tf32: bool = False,
    backward: bool = False,
) -> Work:
    plan = NewtonSchulz(m, n, dtype, device.capability, tf32, backward)
    useful = useful_newton_schulz(batch, m, n, len(linear)) * (2 if backward else 1)
    moved = (3.0 if backward else 2.0) * batch * m * n * BYTES[dtype]
    if not plan.is_fused(device.block_shared):
        # Products keep the inputs' dtype; the backward makes the iterates anew.
        again = useful_newton_schulz(batch, m, n, len(linear) - 1) if backward else 0.0
        kind = "half" if dtype != "float32" else "tf32" if tf32 else "float"
        return Work("matrix products", kind, useful, useful + again, moved)
    blocks = math.ceil(batch / plan.matrices)
    if backward:
        blocks = min(blocks, 4 * device.multiprocessors)
    return Work(
        kernel=f"fused {plan.size}",
        arithmetic=plan.arithmetic,
        useful=useful,
        executed=batch * plan.executed(linear),
        moved=moved,
        scratch=float(batch * plan.tape(len(linear))) if backward else 0.0,
        blocks=blocks,
        threads=plan.matrices * 2 * (plan.size or 0),
        shared=plan.shared,
    )


def monomials(variables: int, degree: int) -> int:
    """Of total degree exactly `degree`."""
    return math.comb(variables + degree - 1, degree)


def poly_features(
    rows: int, dim: int, degree: int, dtype: str, device: Device, *, backward: bool = False
) -> Work:
    features, each = math.comb(dim + degree, degree), BYTES[dtype]
    if not backward:
        columns = math.ceil(features / 128)
        groups = math.ceil(rows / (16 // each))
        blocks = columns * min(groups, math.ceil(16 * device.multiprocessors / columns), 65535)
        # A weight and `degree` factors, ones among them, whatever the monomial.
        executed = float(rows * features * degree)
        useful = sum(float(rows * monomials(dim, k) * k) for k in range(1, degree + 1))
        moved = float(rows * (dim + features) * each)
        return Work("forward", "float", useful, executed, moved, blocks=blocks, threads=128)
    lanes = 32 if dim > 16 else 16 if dim > 8 else 8
    at_a_time = 128 // lanes
    sums = sum(monomials(dim, k) for k in range(1, degree))
    states, more = at_a_time * 2 * dim * 4, at_a_time * sums * 4
    fits = states + more + (1 << 10) <= device.block_shared // 2
    shared = states + more if fits else states
    # By registers, and as shared memory allows; four where the sums are in device memory.
    most = 4 if not fits else 7 if degree == 4 else 8 if device.capability < 80 else 9
    resident = max(1, min(most, (device.block_shared + RESERVED) // (shared + RESERVED + 256)))
    # root, scale, two for each of grad_x and the sum, three for the scale's gradient; and one for
    # what the children left, except at the highest degree.
    child = 9 * (features - 1) + (features - 1 - monomials(dim, degree))
    return Work(
        kernel="backward",
        arithmetic="float",
        useful=float(rows * 4 * (features - 1)),
        executed=float(rows * child),
        moved=float(rows * (2 * dim + features) * each),
        scratch=0.0 if fits else 2.0 * rows * sums * 4,
        blocks=min(math.ceil(rows / at_a_time), resident * device.multiprocessors),
        threads=128,
        shared=shared,
    )
