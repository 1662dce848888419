"""`python -m bench.banks`: shared-memory passes of the loads and stores of tile.cuh and block.cuh.

32 banks of 4 bytes. A pass serves words of different banks, and one word to any number of lanes.
Accesses of 8 bytes a lane go half a warp at a time; ldmatrix reads eight rows of 16 bytes a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

LANES = range(32)
SIZES = (16, 32, 64, 128)
At = Callable[[int, int, int], int]  # row, column, width: the word


def passes(words: Iterable[int]) -> int:
    """How often the busiest bank is asked, for the words (4 bytes each) wanted at one time."""
    banks: dict[int, set[int]] = {}
    for word in words:
        banks.setdefault(word % 32, set()).add(word)
    return max(len(asked) for asked in banks.values())


def halves(word: Callable[[int], int]) -> int:
    """Accesses of 8 bytes a lane: word(lane) and its neighbour, half a warp at a time."""
    return sum(
        passes(word(lane) + i for lane in half for i in (0, 1))
        for half in (range(16), range(16, 32))
    )


def half_at(row: int, column: int, width: int) -> int:
    """HalfTile::at, in words."""
    return (row * (width + 8) + column) // 2


def float_at(row: int, column: int, width: int) -> int:
    """FloatElements::at."""
    order = (row & 2) << 3 | ((row ^ row >> 2) & 1) << 3
    return (row * width + column) ^ order


def plain_half(row: int, column: int, width: int) -> int:
    return (row * width + column) // 2


def plain_float(row: int, column: int, width: int) -> int:
    return row * width + column


def half_ldmatrix(at: At, width: int) -> int:
    """The rows of one 8x8 matrix of 16-bit elements, transposed or not: the same addresses."""
    return passes(at(row, 2 * word, width) for row in range(8) for word in range(4))


def half_store(at: At, width: int) -> int:
    """MmaRows.visit: two 16-bit elements a lane."""
    return passes(at(lane // 4, lane % 4 * 2, width) for lane in LANES)


def half_mirror(at: At, width: int) -> int:
    """symmetrise: one of a lane's two neighbours, across."""
    return passes(at(lane % 4 * 2, lane // 4, width) for lane in LANES)


def tf32_load_a(at: At, width: int) -> int:
    return halves(lambda lane: at(lane // 4, lane % 4 * 2, width))


def tf32_load_a_transposed(at: At, width: int) -> int:
    """The rows of a pair of k are two accesses."""
    return passes(at(lane % 4 * 2, lane // 4, width) for lane in LANES)


def tf32_load_a_transposed_odd(at: At, width: int) -> int:
    return passes(at(lane % 4 * 2 + 1, lane // 4, width) for lane in LANES)


def tf32_load_b(at: At, width: int) -> int:
    """As symmetrise reads and writes across, in float."""
    return tf32_load_a_transposed(at, width)


def tf32_load_b_odd(at: At, width: int) -> int:
    return tf32_load_a_transposed_odd(at, width)


def tf32_store(at: At, width: int) -> int:
    """As quadratic and symmetrise read and write along, in float."""
    return halves(lambda lane: at(lane // 4, lane % 4 * 2, width))


def float_load_a(at: At, width: int) -> int:
    """One row of each lane's four: four addresses, each for eight lanes."""
    return passes(at(lane // 8 * 2, 0, width) for lane in LANES)


def float_load_a_transposed(at: At, width: int) -> int:
    """Two neighbours of each lane's four rows."""
    return halves(lambda lane: at(0, lane // 8 * 2, width))


def float_load_b(at: At, width: int) -> int:
    """Two neighbouring columns a lane; the four rows of lanes want the same."""
    return halves(lambda lane: at(0, lane % 8 * 2, width))


def float_store(at: At, width: int) -> int:
    return halves(lambda lane: at(lane // 8 * 2, lane % 8 * 2, width))


ACCESSES: dict[Callable[[At, int], int], int] = {  # passes without conflicts
    half_ldmatrix: 1,
    half_store: 1,
    half_mirror: 1,
    tf32_load_a: 2,
    tf32_load_a_transposed: 1,
    tf32_load_a_transposed_odd: 1,
    tf32_load_b: 1,
    tf32_load_b_odd: 1,
    tf32_store: 2,
    float_load_a: 1,
    float_load_a_transposed: 2,
    float_load_b: 2,
    float_store: 2,
}


def layouts(access: Callable[[At, int], int]) -> tuple[At, At]:
    """The one in use, and rows one after another."""
    if access.__name__.startswith("half"):
        return half_at, plain_half
    return float_at, plain_float


# ---- block_product (block.cuh): rows of `leading` floats, one float a lane


def product_a(leading: int) -> int:
    """Rows along the lanes: A, or B transposed."""
    return passes(lane // 4 * leading + lane % 4 for lane in LANES)


def product_b(leading: int) -> int:
    """Columns along the lanes: B, or A transposed."""
    return passes(lane % 4 * leading + lane // 4 for lane in LANES)


def product_store(leading: int) -> int:
    return passes(lane // 4 * leading + lane % 4 * 2 for lane in LANES)


def product_step(leading: int, a_transposed: bool, b_transposed: bool) -> int:
    """Passes for the 8 of depth of its four mma: 4 loads of A, 8 of B."""
    a = product_b if a_transposed else product_a
    b = product_a if b_transposed else product_b
    return 4 * a(leading) + 8 * b(leading)


KINDS = {
    "A B": (False, False),
    "A B^T": (False, True),
    "A^T B": (True, False),
    "A^T B^T": (True, True),
}


def table() -> list[str]:
    rows = [f"{'access':<28}{'at best':>8}" + "".join(f"{s:>9}" for s in SIZES)]
    for access, best in ACCESSES.items():
        used, plain = layouts(access)
        counts = (f"{access(used, size)} ({access(plain, size)})" for size in SIZES)
        rows.append(f"{access.__name__:<28}{best:>8}" + "".join(f"{c:>9}" for c in counts))
    steps = ", ".join(
        f"{name} {product_step(68, *kind)} ({product_step(64, *kind)})"
        for name, kind in KINDS.items()
    )
    return [
        *rows,
        "in brackets: rows one after another, neither padded nor exchanged",
        f"four mma of block_product, rows of 68 (64) floats: {steps}",
    ]


if __name__ == "__main__":
    print("\n".join(table()))
