"""What the Omega rule's CUDA kernels hold, execute and move (docs/cuda.md).

Products are those of omega_dual.cuh, omega_muon.cuh and their backwards, one for one; in the
backward the formulas of docs/math/omega_rule.md, sections 5 to 7, and what is computed anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from bench.cuda_work import BYTES, MUON_A, Device, Work, stretches
from bench.omega_buffers import MEMORIES, TILE_COLUMNS, TILE_ROWS, OmegaMemory, Team, shares

__all__ = ["MEMORIES", "OmegaRule", "Product", "omega_rule", "omega_rule_update"]
TF32_DEPTH = 8  # of one mma


@dataclass(frozen=True)
class Product:
    """[m, n] = [m, depth] [depth, n] by block_product."""

    m: int
    n: int
    depth: int

    @property
    def useful(self) -> int:
        return 2 * self.m * self.n * self.depth

    def tile_rows(self, warps: int) -> int:
        """Of a tile in plain tf32: two_bands_pay in block.cuh."""
        one, two = (
            math.ceil(
                math.ceil(self.m / (bands * TILE_ROWS)) * math.ceil(self.n / TILE_COLUMNS) / warps
            )
            for bands in (1, 2)
        )
        return 2 * TILE_ROWS if 5 * two < 4 * one else TILE_ROWS

    def chain(self, warps: int) -> int:
        """Instructions of the busiest warp in plain tf32, as docs/cuda.md counts them: eight of
        depth take 78, two bands of rows 99; a band's start and end 300."""
        rows = self.tile_rows(warps)
        bands = rows // TILE_ROWS
        tiles = math.ceil(self.m / rows) * math.ceil(self.n / TILE_COLUMNS)
        step = 78 if bands == 1 else 99
        return math.ceil(tiles / warps) * (math.ceil(self.depth / TF32_DEPTH) * step + 300 * bands)

    def executed(self, warps: int, tf32: bool, split: bool = False) -> int:
        """By FFMA or mma of a block; split tf32 makes three mma."""
        rows = self.tile_rows(warps) if tf32 and not split else TILE_ROWS
        tiles = math.ceil(self.m / rows) * math.ceil(self.n / TILE_COLUMNS)
        step = TF32_DEPTH if tf32 else 1
        times = 3 if split and tf32 else 1
        return times * 2 * rows * TILE_COLUMNS * tiles * math.ceil(self.depth / step) * step


@dataclass(frozen=True)
class Chunk:
    """Tokens of a chunk and the window rows before them."""

    position: int
    tokens: int
    overhang: int
    ends: bool  # the call's last

    @property
    def rows(self) -> int:
        return self.overhang + self.tokens


@dataclass(frozen=True)
class OmegaRule(OmegaMemory):
    """One (sequence, head) of a call whose tokens begin at position 0."""

    def chunks(self, tokens: int) -> Iterator[Chunk]:
        for first in range(0, tokens, self.C):
            count = min(self.C, tokens - first)
            yield Chunk(first, count, min(self.W - 1, first), first + count == tokens)

    def segments(self, chunk: Chunk) -> Iterator[tuple[int, int, bool]]:
        """First and last token of each, and whether the memory is written at the last."""
        first = 0
        while first < chunk.tokens:
            write = first + self.ns_every - 1 - (chunk.position + first) % self.ns_every
            last = min(write, chunk.tokens - 1)
            yield first, last, write < chunk.tokens
            first = last + 1

    def segment_rows(self, chunk: Chunk, first: int, last: int) -> int:
        """Window rows that the segment's tokens see."""
        return chunk.overhang + last + 1 - max(0, chunk.overhang + first - (self.W - 1))

    def _read(self, rows: int, layer: int) -> Iterator[Product]:
        width, out = self.matrices[layer]
        for part in self._parts(width, layer):
            yield Product(rows, out, part)

    def _write(self, rows: int, layer: int, columns: int = 0) -> Iterator[Product]:
        width, out = self.matrices[layer]
        for part in self._parts(width, layer):
            yield Product(part, columns or out, rows)

    def _parts(self, width: int, layer: int) -> list[int]:
        """The polynomial map's features come tile by tile."""
        step = self.lift_tile if self.degree and layer < self.first_layer else width
        return [min(step, width - first) for first in range(0, width, step)]

    def _signals(self, rows: int) -> Iterator[Product]:
        if not self.deep:
            yield from self._read(rows, 0) if self.l2 else ()
            return
        for layer in range(self.first_layer):
            yield from self._read(rows, layer)
        if self.l2:
            yield Product(rows, self.V, self.F)
        yield Product(rows, self.F, self.V)

    def schulz(self, width: int, out: int) -> Iterator[Product]:
        """The muon schedule in stretches (omega_newton_schulz.cuh)."""
        short, long = min(width, out), max(width, out)
        for length in stretches((MUON_A,) * self.ns_steps, long >= 2 * short):
            yield Product(short, short, long)
            yield from [Product(short, short, short)] * (4 * length - 3)
            yield Product(width, out, short)

    def _dual_reads(self, tokens: int, rows: int) -> Iterator[Product]:
        for layer, (_, out) in enumerate(self.matrices):
            if layer == 0 or layer == self.first_layer:  # the layers that see phi share scores
                yield Product(tokens, rows, self.K if layer < self.first_layer else self.F)
            for _ in range(self.states):
                yield from self._read(tokens, layer)
            yield Product(tokens, out, rows)

    def _dual_chunk(self, chunk: Chunk, advance: bool) -> Iterator[Product]:
        yield from self._dual_reads(chunk.tokens, chunk.rows)
        for layer in range(len(self.matrices)) if advance else ():
            for _ in range(self.states):
                yield from self._write(chunk.rows, layer)

    def _muon_chunk(self, chunk: Chunk) -> Iterator[Product]:
        for first, last, writes in self.segments(chunk):
            rows, layers = self.segment_rows(chunk, first, last), range(len(self.matrices))
            if writes or self.momentum:
                for layer in layers:
                    yield from self._write(rows, layer)
            before = last - first + (0 if writes else 1)
            for layer in layers if before else ():
                yield from self._read(before, layer)
            if writes:
                for layer, matrix in enumerate(self.matrices):
                    yield from self.schulz(*matrix)
                    yield from self._read(1, layer)

    def products(
        self, tokens: int, final_state: bool = False, team: Team | None = None
    ) -> Iterator[Product]:
        """Of the forward."""
        for chunk in self.chunks(tokens):
            advances = final_state or not chunk.ends
            if team:
                yield from self._team_chunk(chunk, advances, team)
                continue
            yield from self._signals(chunk.rows)
            if self.muon:
                yield from self._muon_chunk(chunk)
            else:
                yield from self._dual_chunk(chunk, advances)

    def _columns(self, layer: int, team: Team | None) -> list[int]:
        """Of a matrix that a team's blocks share by columns; tiles of features are as before."""
        out = self.matrices[layer][1]
        return shares(out, team.columns if team and not self.lifts(layer) else out)

    def _team_chunk(self, chunk: Chunk, advances: bool, team: Team) -> Iterator[Product]:
        for rows in shares(chunk.rows, team.rows):
            yield from self._signals(rows)
        seen = chunk.overhang
        for tokens in shares(chunk.tokens, team.rows):
            seen += tokens
            yield from self._dual_reads(tokens, seen)
        for layer in range(len(self.matrices)) if advances else ():
            for columns in self._columns(layer, team):
                for _ in range(self.states):
                    yield from self._write(chunk.rows, layer, columns)

    def update_products(self) -> Iterator[Product]:
        """Of one token, without Newton-Schulz."""
        yield from self._signals(self.W)
        for layer in range(len(self.matrices)):
            yield from self._write(self.W, layer)
            yield from self._read(1, layer)

    def backward_products(self, tokens: int, team: Team | None = None) -> Iterator[Product]:
        """(20) to (31), (38) and (45); (39) to (44) with Newton-Schulz."""
        for chunk in self.chunks(tokens):
            # In one block, or in what each block of a team has.
            some_rows = shares(chunk.rows, team.rows if team else chunk.rows)
            for rows in some_rows:
                yield from self._signals(rows)
                for layer in range(len(self.matrices)):
                    yield from self._signals_to_rows(rows, layer)
            for layer in range(len(self.matrices)):
                for columns in self._columns(layer, team):
                    yield from self._signals_to_columns(chunk.rows, layer, columns)
                    if not self.muon:
                        yield from self._leave_to_columns(chunk.tokens, layer, columns)
            if self.muon:
                yield from self._muon_backward(chunk)
                continue
            for tokens_ in shares(chunk.tokens, team.rows if team else chunk.tokens):
                yield from self._tokens_backward(tokens_, chunk.rows)
            for rows in some_rows:
                yield from self._rows_backward(rows, chunk.tokens)

    def repeated_products(self, tokens: int) -> Iterator[Product]:
        """Of a linear memory's backward in two launches: what both make."""
        for chunk in self.chunks(tokens):
            yield Product(chunk.tokens, chunk.rows, self.K)  # P
            yield Product(chunk.rows, self.V, chunk.tokens)  # gd
            for _ in range(2 if self.momentum else 1):
                yield from self._read(chunk.rows, 0)  # hM

    def _signals_to_rows(self, rows: int, layer: int) -> Iterator[Product]:
        (width, out), last = self.matrices[layer], layer == len(self.matrices) - 1
        if last and self.deep:  # ge += W2 gb
            yield Product(rows, out, width)
        if self.l2 or not last:  # ginput += Wᵀ gz
            yield from self._back(rows, layer)

    def _signals_to_columns(self, rows: int, layer: int, columns: int) -> Iterator[Product]:
        (width, _), last = self.matrices[layer], layer == len(self.matrices) - 1
        if last and self.deep:  # gW2 += e gbᵀ
            yield Product(width, columns, rows)
        if self.l2 or not last:  # gW += gz inputᵀ
            yield from self._write(rows, layer, columns)

    def _leave_to_columns(self, tokens: int, layer: int, columns: int) -> Iterator[Product]:
        for _ in range(self.states):
            yield from self._write(tokens, layer, columns)  # gM_hat

    def _tokens_backward(self, tokens: int, rows: int) -> Iterator[Product]:
        for layer, (_, out) in enumerate(self.matrices):
            inner = self.K if layer < self.first_layer else self.F
            if layer == 0 or layer == self.first_layer:
                yield from (Product(tokens, rows, inner), Product(tokens, inner, rows))  # P, gu
            yield Product(tokens, rows, out)  # B
            if self.deep and layer < self.first_layer:  # z of the queries, anew
                yield Product(tokens, out, rows)
                yield from (p for _ in range(self.states) for p in self._read(tokens, layer))
            if self.deep and layer == 0:
                yield Product(tokens, rows, inner)  # P for z
            for _ in range(self.states):
                yield from (*self._read(tokens, layer), *self._back(tokens, layer))  # M_hat u, gu

    def _rows_backward(self, rows: int, tokens: int) -> Iterator[Product]:
        for layer, (_, out) in enumerate(self.matrices):
            if layer == 0 or layer == self.first_layer:
                inner = self.K if layer < self.first_layer else self.F
                yield Product(rows, inner, tokens)  # gx by gP
            yield Product(rows, out, tokens)  # gd
            for _ in range(self.states):
                yield from (*self._read(rows, layer), *self._back(rows, layer))  # hM, gx

    def _back(self, rows: int, layer: int) -> Iterator[Product]:
        width, out = self.matrices[layer]
        for part in self._parts(width, layer):
            yield Product(rows, part, out)

    def _muon_backward(self, chunk: Chunk) -> Iterator[Product]:
        layers = range(len(self.matrices))
        for first, last, writes in self.segments(chunk):
            rows, before = self.segment_rows(chunk, first, last), last - first + (not writes)
            advances = layers if writes or self.momentum else ()
            for layer in advances:  # S and O of the write, anew
                yield from self._write(rows, layer)
            for matrix in self.matrices if writes else ():
                yield from self.schulz(*matrix)
                yield from self._schulz_backward(*matrix)
            for tokens, decays in ((int(writes), False), (before, True)):
                for layer in layers if tokens else ():
                    if decays:  # M u, for the decays' gradients
                        yield from self._read(tokens, layer)
                    yield from (*self._write(tokens, layer), *self._back(tokens, layer))
                    if self.deep and layer < self.first_layer:  # z of the queries
                        yield from self._read(tokens, layer)
            for layer in advances:  # (44)
                yield from (*self._read(rows, layer), *self._back(rows, layer))

    def _schulz_backward(self, width: int, out: int) -> Iterator[Product]:
        short, long = min(width, out), max(width, out)
        square, gram = Product(short, short, short), Product(short, short, long)
        apply = Product(width, out, short)
        for step in range(self.ns_steps):
            yield from (gram, gram, square, square, apply, apply)
            if step > 0:  # the iterates, anew, one by one
                yield from (gram, square, apply)


def omega_rule(
    rule: OmegaRule,
    sequences: int,
    heads: int,
    tokens: int,
    dtype: str,
    device: Device,
    *,
    tf32: bool = False,
    backward: bool = False,
) -> Work:
    """Inputs, output and M_0 are moved once; the backward also reads its checkpoints."""
    items, element = sequences * heads, BYTES[dtype]
    on_tensor_cores = device.capability >= 80 and (dtype != "float32" or tf32)
    chunks, rows = len(list(rule.chunks(tokens))), items * tokens if backward else 0
    slices = rule.slices(
        device.block_shared,
        backward,
        items=items,
        multiprocessors=device.multiprocessors,
        rows=rows,
    )
    part = rule.slice_of(slices).resident(
        device.block_shared, backward, items, device.multiprocessors
    )
    team = part.team(device.block_shared, backward, items, device.multiprocessors)

    def products(one: OmegaRule, team: Team | None = None) -> list[Product]:
        return list(
            one.backward_products(tokens, team) if backward else one.products(tokens, team=team)
        )

    useful, made = products(rule), products(part, team)
    place, blocks = part.placement(device.block_shared, backward), items * slices
    parts = rule.parts(slices, items, chunks, device.multiprocessors, rows) if backward else 1
    started = blocks * parts
    if team:
        place = part.team_placement(device.block_shared, backward, team)
        started = items * part.team_blocks(backward, team)
    if parts > 1:
        made += part.repeated_products(tokens)
    token = element * (2 * rule.K + 2 * rule.V) + 4 * (rule.W + 2 + rule.momentum)
    moved = items * tokens * token + heads * 4 * rule.size
    states = chunks * rule.states
    if backward:  # the gradients are as large as the inputs
        moved += items * (tokens * (token - element * rule.V) + states * 4 * rule.size)
        moved += heads * 4 * rule.size
        # Summands are written and read, and so are the gradients of states between two launches.
        moved += items * tokens * 2 * rule.summand_bytes(slices, 2 if parts > 1 else 1)
        moved += items * states * 2 * 4 * rule.size if parts > 1 else 0
    # A buffer in scratch is written and read in every chunk, once at least.
    scratch = 2.0 * blocks * chunks * place.scratch_bytes
    return Work(
        kernel=f"{'Newton-Schulz' if rule.muon else 'dual'} form",
        arithmetic="tf32" if on_tensor_cores else "float",
        useful=float(items * sum(product.useful for product in useful)),
        executed=float(
            blocks * sum(p.executed(part.threads // 32, on_tensor_cores, rule.muon) for p in made)
        ),
        moved=float(moved),
        scratch=scratch,
        blocks=min(started, part.residents * device.multiprocessors)
        if place.scratch_bytes
        else started,
        threads=part.threads,
        shared=place.shared_bytes,
    )


def omega_rule_update(
    rule: OmegaRule, rows: int, heads: int, dtype: str, *, state_bytes: int = 4
) -> Work:
    """One token for each row: the state is read and written, M_ref is read and once a chunk
    written, the window moves on by a slot."""
    element, items = BYTES[dtype], rows * heads
    states = (2 if rule.momentum else 1) * 2 + 1 + 1 / rule.C
    window = 2 * (rule.W - 1) * (rule.K + rule.V) * element
    token = element * (2 * rule.K + 2 * rule.V) + 4 * (rule.W + 2 + rule.momentum)
    useful = float(sum(product.useful for product in rule.update_products()))
    schulz = (product.useful for matrix in rule.matrices for product in rule.schulz(*matrix))
    useful += sum(schulz) / rule.ns_every
    moved = items * (state_bytes * states * rule.size + window + token)
    return Work("update", "float", items * useful, items * useful, moved)
