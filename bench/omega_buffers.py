"""Where the Omega rule's CUDA kernels hold what they work on: omega_work.cuh, omega_grads.cuh."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

from bench.cuda_work import RESERVED

TILE_ROWS, TILE_COLUMNS = 16, 32  # a warp's results of a product
STATIC, WARPS = 1 << 10, 8
LIFT_FLOATS = 8 << 10
MOST_RESIDENTS = 2  # heads that share a multiprocessor
MOST_TO_FIT = 4  # slices of V that make a state fit
MOST_SUMMANDS = 1 << 30  # bytes
MEMORIES = ("linear", "mlp", "gated_mlp")

Memory = TypeVar("Memory", bound="OmegaMemory")


def leading(width: int) -> int:
    return (width + 3) // 8 * 8 + 4


def shares(count: int, each: int) -> list[int]:
    return [min(each, count - first) for first in range(0, count, each)]


@dataclass(frozen=True)
class Team:
    """What a block has: window rows or tokens; columns of a matrix, or features that it sees."""

    rows: int
    columns: int
    features: int


@dataclass(frozen=True)
class Placement:
    """Where a block's buffers lie: floats by name, in the order in which they are taken."""

    shared: dict[str, int]
    device: dict[str, int]
    shared_bytes: int  # asked for
    on_chip: bool  # the states; with Newton-Schulz its squares, X and X's successor

    @property
    def scratch_bytes(self) -> int:
        return 4 * sum(self.device.values())


@dataclass(frozen=True)
class OmegaMemory:
    """One (sequence, head): sizes, buffers, placement."""

    K: int
    V: int
    F: int = 0
    W: int = 16
    C: int = 64
    degree: int = 0
    memory: str = "linear"
    momentum: bool = True
    ns_steps: int = 0
    ns_every: int = 1
    l2: bool = True
    residents: int = 1  # blocks that share a multiprocessor

    @property
    def deep(self) -> bool:
        return self.memory != "linear"

    @property
    def muon(self) -> bool:
        return self.ns_steps > 0

    @property
    def features(self) -> int:
        return math.comb(self.K + self.degree, self.degree) if self.degree else self.K

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(in, out) of each: those that see phi first."""
        if not self.deep:
            return [(self.features, self.V)]
        first = MEMORIES.index(self.memory)
        return [(self.features, self.F)] * first + [(self.F, self.V)]

    @property
    def first_layer(self) -> int:
        return max(1, len(self.matrices) - 1)

    @property
    def size(self) -> int:
        """Weights of one memory."""
        return sum(width * out for width, out in self.matrices)

    @property
    def states(self) -> int:
        return 2 if self.momentum else 1

    @property
    def rows(self) -> int:
        return self.C + self.W - 1

    @property
    def lift_tile(self) -> int:
        """Features that are made at a time."""
        floats = LIFT_FLOATS // self.residents
        return min(self.features, max(floats // self.rows // 32 * 32, 32))

    def buffers(self) -> Iterator[tuple[str, int]]:
        """Floats of what the forward takes, in its order (take_forward)."""
        vp, rp = leading(self.V), leading(self.rows)
        yield from self._common_buffers()
        yield from self._states("", self.momentum or self.muon, 4 if self.elongated else 2)
        yield from self._row_buffers()
        yield from (("y", self.C * vp), ("a", rp))
        if not self.muon:
            yield from (("scores", self.C * rp), ("cf", self.C * rp))

    @property
    def elongated(self) -> bool:
        """A matrix has a side at least twice the other (omega_plan.h)."""
        return any(max(matrix) >= 2 * min(matrix) for matrix in self.matrices)

    def _held(self) -> list[int]:
        """Floats of each matrix of a state."""
        return [width * leading(out) for width, out in self.matrices]

    def _common_buffers(self) -> Iterator[tuple[str, int]]:
        yield from ((name, self.C) for name in ("alpha", "theta", "eta", "p", "s", "m"))
        yield from self._own_buffers()

    def _own_buffers(self) -> Iterator[tuple[str, int]]:
        yield from (("line", WARPS), ("c", 5))
        if self.degree:
            yield from () if self.muon else self._tile()
            yield from (("lift.indices", 2 * self.features), ("lift.roots", self.features))

    def _tile(self) -> Iterator[tuple[str, int]]:
        yield "lift.tile", self.rows * leading(self.lift_tile)

    def _states(self, of: str, momentum: bool, squares: int) -> Iterator[tuple[str, int]]:
        """take_states: the most used first."""
        state = sum(self._held())
        states = [(f"{of}weights", state)] + ([(f"{of}momentum", state)] if momentum else [])
        if self.muon:
            yield from self._tile() if self.degree else ()
            yield from self._schulz_buffers(squares)
            states.reverse()
        yield from states

    def _schulz_buffers(self, squares: int) -> Iterator[tuple[str, int]]:
        side = max(min(matrix) for matrix in self.matrices)
        yield from ((f"squares[{i}]", side * leading(side)) for i in range(squares))
        yield from ((f"ns[{i}]", max(self._held())) for i in (0, 1))

    def _row_buffers(self) -> Iterator[tuple[str, int]]:
        kp, fp = leading(self.K + 1 if self.degree else self.K), leading(self.F)
        yield from (("q", self.C * kp), ("k", self.rows * kp))
        for l, (_, out) in enumerate(self.matrices):
            yield f"d[{l}]", self.rows * leading(out)
        if self.deep:
            yield from (("h", self.rows * fp), ("b", self.rows * fp))
            yield from ((f"queries[{l}]", self.C * fp) for l in range(self.first_layer))
            yield "query_h", self.C * fp

    def backward_buffers(self) -> Iterator[tuple[str, int]]:
        """Those of the backward (take_backward); adjoints are named g."""
        state, rows, pairs = sum(self._held()), self.rows, self.C * leading(self.rows)
        kp, vp = leading(self.K + 1 if self.degree else self.K), leading(self.V)
        fp = leading(self.F)
        wide = rows * max(kp, vp, fp)
        yield from self._common_buffers()
        yield from ((f"g.{name}", self.C) for name in ("p", "s", "m", "alpha", "theta", "eta"))
        yield from (("g.a_last", leading(rows)), ("g.scales", 5 * self.threads))
        yield from self._states("g.", self.momentum, 4)
        yield from self._row_buffers()
        yield "g.y", self.C * vp
        yield from ((f"g.d[{l}]", rows * leading(out)) for l, (_, out) in enumerate(self.matrices))
        yield from (("g.q", self.C * kp), ("g.k_sum", rows * kp), ("g.v_sum", rows * vp))
        yield from (("g.wide", wide), ("a", pairs))
        if not self.muon:
            yield from ((name, pairs) for name in ("cf", "scores", "g.cf", "g.scores", "g.other"))
            yield "g.wide2", wide
        yield "g.pair", pairs
        if not self.muon:
            yield from ((f"g.pairs[{l}]", pairs) for l in range(1, self.first_layer))
        if self.deep:
            for l in range(self.first_layer):
                yield from ((f"z[{l}]", rows * fp), (f"g.queries[{l}]", self.C * fp))
            yield from (("g.h", rows * fp), ("g.query_h", self.C * fp))
        yield "g.reference", state
        if self.muon:
            segments = 2 if self.ns_every >= self.C else math.ceil(self.C / self.ns_every) + 1
            yield from (("g.grad_o", state), ("g.grad_s", state))
            yield "g.tape", self.ns_steps * max(self._held())
            yield "g.segment_weights", (segments + 1) * state
            yield "g.segment_momentum", (segments + 1) * state
            yield "g.segment_orthogonal", segments * state

    def slice_of(self: Memory, slices: int) -> Memory:
        """What one block has where `slices` blocks share the outputs."""
        return replace(self, V=self.V // slices)

    def resident(
        self: Memory, block_shared: int, backward: bool, items: int, multiprocessors: int
    ) -> Memory:
        """What one block has where two heads share a multiprocessor: residents_for in
        omega_plan.cu, but for packed sequences, which do not."""
        half = replace(self, residents=MOST_RESIDENTS)
        shares_it = (
            self.deep
            and self.V <= TILE_COLUMNS
            and math.ceil(items / multiprocessors) % MOST_RESIDENTS == 0
            and self.threads == 32 * WARPS
            and half.placement(block_shared, backward).on_chip
        )
        return half if shares_it else self

    def summand_bytes(self, slices: int, chunks: int) -> int:
        """Of the backward's summands for each token and head: summand_floats."""
        gates = self.K + self.W + 3
        widths = ((slices, gates), (slices * chunks, self.K), (chunks, self.V))
        return 4 * sum(count * width for count, width in widths if count > 1)

    def slices(
        self,
        block_shared: int,
        backward: bool = False,
        *,
        items: int = 1,
        multiprocessors: int = 1,
        rows: int = 0,
    ) -> int:
        """Blocks that share the outputs of one of `items` (sequence, head) pairs: slices_for in
        omega_plan.cu. `rows`: tokens times heads of the backward."""
        if self.deep or self.muon:
            return 1

        def divides(count: int) -> bool:
            return self.V % count == 0 and self.V // count >= TILE_COLUMNS

        def fits(count: int) -> bool:
            return self.slice_of(count).placement(block_shared, backward).on_chip

        few = [count for count in (1, 2, MOST_TO_FIT) if count == 1 or divides(count)]
        slices = next(filter(fits, few[:1] if self.degree else few), 1)
        while (
            2 * slices * items <= multiprocessors
            and divides(2 * slices)
            and rows * self.summand_bytes(2 * slices, 1) <= MOST_SUMMANDS
        ):
            slices *= 2
        return slices

    def parts(
        self, slices: int, items: int, chunks: int, multiprocessors: int, rows: int = 0
    ) -> int:
        """Blocks that share the chunks of each slice of `items` in the backward: parts_for."""
        blocks = slices * items
        if self.deep or self.muon or self.C < self.W - 1 or multiprocessors < 2 * blocks:
            return 1
        if rows * self.summand_bytes(slices, 2) > MOST_SUMMANDS:
            return 1
        return max(1, min(multiprocessors // blocks, chunks))

    def placement(self, block_shared: int, backward: bool = False) -> Placement:
        """With blocks that may have `block_shared` bytes: what fits is taken in order."""
        wanted = self.backward_buffers() if backward else self.buffers()
        taken = {name: math.ceil(floats / 4) * 4 for name, floats in wanted}
        room = ((block_shared + RESERVED) // self.residents - RESERVED - STATIC) // 4
        if self.muon and self.degree and taken["lift.tile"] <= max(self._held()):
            names = list(taken)
            others = names[: names.index("ns[1]") + 1]
            if sum(taken[name] for name in others if name != "lift.tile") <= room:
                del taken["lift.tile"]  # which lies in ns[1]: take_steps
        limit = min(sum(taken.values()), room)
        shared: dict[str, int] = {}
        for name, floats in taken.items():
            if sum(shared.values()) + floats <= limit:
                shared[name] = floats
        device = {name: floats for name, floats in taken.items() if name not in shared}
        first = {"g.weights", "g.momentum"} if backward else {"weights", "momentum"}
        if self.muon:
            first = {name for name, _ in self._schulz_buffers(4)}
        on_chip = not first & device.keys()
        return Placement(shared, device, 4 * limit, on_chip)

    def team(
        self, block_shared: int, backward: bool, items: int, multiprocessors: int
    ) -> Team | None:
        """Blocks that share the chunks of a deep memory: team_for in omega_plan.cu."""
        if not self.deep or self.muon or 4 * items > multiprocessors:
            return None
        if self.placement(block_shared, backward).on_chip:
            return None
        step = self.lift_tile if self.degree else 0
        team = Team(TILE_ROWS, TILE_COLUMNS, step)
        while items * self.team_blocks(backward, team, False) > multiprocessors:
            rows, parts = len(shares(self.rows, team.rows)), self.team_parts(team)
            if parts > len(self.matrices) and (rows == 1 or parts >= rows):
                team = replace(
                    team, columns=team.columns + TILE_COLUMNS, features=team.features + step
                )
            else:
                team = replace(team, rows=team.rows + TILE_ROWS)
        return team

    def lifts(self, layer: int) -> bool:
        return self.degree > 0 and layer < self.first_layer

    def team_parts(self, team: Team) -> int:
        """Of all matrices: part_count in omega_team.cuh."""
        return sum(
            len(shares(width, team.features) if self.lifts(l) else shares(out, team.columns))
            for l, (width, out) in enumerate(self.matrices)
        )

    def team_blocks(self, backward: bool, team: Team, all_steps: bool = True) -> int:
        """Of an item, in the launch that has most; some blocks of the step `rows` only add up."""
        rows, parts = len(shares(self.rows, team.rows)), self.team_parts(team)
        tokens = 0 if backward else len(shares(self.C, team.rows)) + parts
        return max(rows + 1, parts + 1, tokens, rows + parts if backward and all_steps else 0)

    def team_placement(self, block_shared: int, backward: bool, team: Team) -> Placement:
        """All buffers in device memory, but what a block has of its own."""
        device = dict(self.backward_buffers() if backward else self.buffers())
        pairs = self.C * leading(self.rows)
        if backward:
            scales = len(shares(self.rows, team.rows)) * 5 * self.threads
            device |= {"g.pairs[last]": pairs, "g.last_scores": pairs, "scales": scales}
            device["dots"] = 3 * self.team_parts(team)
        else:
            device["next states"] = self.states * sum(self._held())
        own = sum(math.ceil(floats / 4) * 4 for _, floats in self._own_buffers())
        shared_bytes = 4 * min(own, (block_shared - STATIC) // 4)
        return Placement(dict(self._own_buffers()), device, shared_bytes, False)

    @property
    def threads(self) -> int:
        def tiles(m: int, n: int) -> int:
            return math.ceil(m / TILE_ROWS) * math.ceil(n / TILE_COLUMNS)

        most = tiles(self.C, self.rows)
        for width, out in self.matrices:
            most = max(most, tiles(width, out), tiles(self.rows, out))
        return 32 * min(WARPS // self.residents, max(2, 1 << (most - 1).bit_length()))
