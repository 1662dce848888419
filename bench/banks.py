"""`python -m bench.banks`: shared-memory passes of the loads and stores of tile.cuh and block.cuh.

32 banks of 4 bytes. A pass serves words of different banks, and one word to any number of lanes.
Accesses of 8 bytes a lane go half a warp at a time; ldmatrix reads eight rows of 16 bytes a time.
"""

from __future__ import annotations

from collections.abc import Iterable

LANES = range(32)


def passes(words: Iterable[int]) -> int:
    """How often the busiest bank is asked, for the words (4 bytes each) wanted at one time."""
    banks: dict[int, set[int]] = {}
    for word in words:
        banks.setdefault(word % 32, set()).add(word)
    return max(len(asked) for asked in banks.values())


def half_ldmatrix(leading: int) -> int:
    """The rows of one 8x8 matrix of 16-bit elements, transposed or not: the same addresses."""
    return passes(row * leading // 2 + word for row in range(8) for word in range(4))


def half_store(leading: int) -> int:
    """MmaRows.visit: two 16-bit elements a lane."""
    return passes(lane // 4 * leading // 2 + lane % 4 for lane in LANES)


def tf32_load_a(leading: int) -> int:
    return passes(lane // 4 * leading + lane % 4 for lane in LANES)


def tf32_load_a_transposed(leading: int) -> int:
    return passes(lane % 4 * leading + lane // 4 for lane in LANES)


def tf32_load_b(leading: int) -> int:
    return tf32_load_a_transposed(leading)


def tf32_store(leading: int) -> int:
    """Two floats a lane, as one access of 8 bytes: two halves of a warp."""
    halves = (range(16), range(16, 32))
    return sum(
        passes(lane // 4 * leading + lane % 4 * 2 + i for lane in half for i in (0, 1))
        for half in halves
    )


def float_load_a(leading: int) -> int:
    """Row i of each lane's four: four addresses, each for eight lanes."""
    return passes(lane // 8 * 4 * leading for lane in LANES)


def float_load_a_transposed(leading: int) -> int:
    return passes(lane // 8 * 4 for lane in LANES)


def float_load_b(leading: int) -> int:
    """Two neighbouring columns a lane, 8 bytes; the four rows of lanes want the same."""
    return sum(
        passes(lane % 8 * 2 + i for lane in half for i in (0, 1))
        for half in (range(16), range(16, 32))
    )


def float_store(leading: int) -> int:
    halves = (range(16), range(16, 32))
    return sum(
        passes(lane // 8 * 4 * leading + lane % 8 * 2 + i for lane in half for i in (0, 1))
        for half in halves
    )


def product_store(leading: int) -> int:
    """Tf32ProductTile: one float a lane."""
    return passes(lane // 4 * leading + lane % 4 * 2 for lane in LANES)


def simple_product_load(leading: int) -> int:
    """SimpleProductTile, A or B, plain or transposed: the worst of them."""
    strided = (passes(row * leading for row in range(count)) for count in (4, 8))
    return max(1, *strided)


def simple_product_store(leading: int) -> int:
    return passes(lane // 8 * leading + lane % 8 for lane in LANES)


def product_step(leading: int, a_transposed: bool, b_transposed: bool) -> int:
    """Passes of Tf32ProductTile for the 8 of depth of its four mma: 4 loads of A, 8 of B.

    A transposed B is read as a plain A is.
    """
    a = tf32_load_a_transposed if a_transposed else tf32_load_a
    b = tf32_load_a if b_transposed else tf32_load_b
    return 4 * a(leading) + 8 * b(leading)


ACCESSES = {  # access: (padding of the leading dimension, passes without conflicts)
    half_ldmatrix: (8, 1),
    half_store: (8, 1),
    tf32_load_a: (4, 1),
    tf32_load_a_transposed: (4, 1),
    tf32_load_b: (4, 1),
    tf32_store: (4, 2),
    float_load_a: (4, 1),
    float_load_a_transposed: (4, 1),
    float_load_b: (4, 2),
    float_store: (4, 2),
    product_store: (4, 1),
    simple_product_load: (4, 1),
    simple_product_store: (4, 1),
}


KINDS = {
    "A B": (False, False),
    "A B^T": (False, True),
    "A^T B": (True, False),
    "A^T B^T": (True, True),
}


def table() -> list[str]:
    sizes = (16, 32, 64, 128)
    rows = [f"{'access':<24}{'at best':>8}" + "".join(f"{f'{s} + pad':>11}" for s in sizes)]
    for access, (pad, best) in ACCESSES.items():
        counts = (f"{access(size + pad)} ({access(size)})" for size in sizes)
        rows.append(f"{access.__name__:<24}{best:>8}" + "".join(f"{c:>11}" for c in counts))
    steps = ", ".join(
        f"{name} {product_step(68, *kind)} ({product_step(64, *kind)})"
        for name, kind in KINDS.items()
    )
    return [*rows, "in brackets: without padding", f"four mma of block_product: {steps}"]


if __name__ == "__main__":
    print("\n".join(table()))
