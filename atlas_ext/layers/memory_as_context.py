"""MAC: attention over what a memory knows and the segment so far."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_bounds, check_state
from .gated_product import GatedProduct
from .memory_read import read_memory
from .omega_memory import OmegaMemory
from .rotary import rotate
from .state import ContextState, MemoryState

Rows = tuple[Tensor, ...]  # k, v, read_k, read_v, each [B, S, H, D]


class MemoryAsContext(nn.Module):
    """Segments of C tokens: y = attention over [memory read || segment], then y is written.

    Token i of a segment reads the memory as it was at the segment's start, M_seg(q_i), sees the
    reads and the tokens j <= i of its own segment, and writes y_i into the memory, whose read after
    that write gates y_i (`GatedProduct`). Nothing depends on later tokens, and no persistent
    tokens stand in front. Rotary positions: 0..C-1 for the reads, C..2C-1 for the tokens.

    Within a call segments follow one another (each reads what the one before wrote), and so do
    packed sequences, and rows that stand at different places of their segments.

    Args:
        memory: the memory.
        hidden_size: width of input and output.
        num_heads: heads H of the attention, of width D = hidden_size // num_heads, even.
        segment: C.
        rope_base: of the rotary positions.
        norm_eps: of the RMSNorms.

    Raises:
        ValueError: a size is out of range.
    """

    def __init__(
        self,
        memory: OmegaMemory,
        hidden_size: int,
        num_heads: int,
        *,
        segment: int = 512,
        rope_base: float = 10_000.0,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads
        self.segment = segment
        self.rope_base = rope_base
        if segment < 1:
            raise ValueError(f"MemoryAsContext: segment: wanted at least 1, got {segment}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(
                "MemoryAsContext: hidden_size // num_heads: wanted an even number of at least 2 "
                f"(pairs are rotated), got {self.head_dim}"
            )
        inner, attended = memory.num_heads * memory.head_dim, num_heads * self.head_dim
        self.memory = memory
        self.query_proj = nn.Linear(hidden_size, inner, bias=False)
        self.query_norm = nn.RMSNorm(memory.head_dim, eps=norm_eps)
        self.read_proj = nn.Linear(inner, hidden_size, bias=False)
        self.read_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.qkv_proj = nn.Linear(hidden_size, 3 * attended, bias=False)
        self.out_proj = nn.Linear(attended, hidden_size, bias=False)
        self.write_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.product = GatedProduct(hidden_size, norm_eps=norm_eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the attention's weights with a standard deviation of 1/(2 sqrt(fan-in))."""
        for linear in (self.query_proj, self.read_proj, self.qkv_proj, self.out_proj):
            nn.init.normal_(linear.weight, std=0.5 * linear.in_features**-0.5)

    def forward(
        self,
        x: Tensor,  # [B, T, hidden_size]
        state: ContextState | None = None,
        cu_seqlens: Tensor | None = None,  # [N+1]
        return_state: bool = False,
    ) -> tuple[Tensor, ContextState | None]:
        """Arguments and results as `OmegaMemory.forward`.

        Synchronises with the device for `cu_seqlens`, and for a state and more than one token: the
        number of segments depends on their values.
        """
        check_state("MemoryAsContext", state, ContextState)
        check_bounds("MemoryAsContext", x, cu_seqlens)
        if cu_seqlens is not None:
            return self._one_by_one(x, state, cu_seqlens.tolist(), return_state)
        if state is None:
            return self._segments(x, None, 0, return_state)
        if x.shape[1] == 1:
            return self._token(x, state, return_state)
        places = set((state.position % self.segment).tolist())
        if len(places) < 2:
            return self._segments(x, state, places.pop() if places else 0, return_state)
        bounds = [n * x.shape[1] for n in range(x.shape[0] + 1)]
        y, last = self._one_by_one(x.flatten(0, 1)[None], state, bounds, return_state)
        return y.reshape(x.shape), last

    def _one_by_one(
        self, x: Tensor, state: ContextState | None, bounds: list[int], return_state: bool
    ) -> tuple[Tensor, ContextState | None]:
        """Packed sequences, each a row of its own."""
        outputs, states = [x[:, :0]], []
        for n, (start, end) in enumerate(pairwise(bounds)):
            place, own = 0, None
            if state is not None:
                own = state.map(lambda tensor, n=n: tensor[n : n + 1])  # type: ignore[misc]
                place = int(own.position) % self.segment
            y, own = self._segments(x[:, start:end], own, place, return_state)
            outputs.append(y)
            states.append(own)
        if not return_state:
            return torch.cat(outputs, 1), None
        if not states:
            raise ValueError("MemoryAsContext: cu_seqlens: wanted a sequence, got none")
        named = [own.tensors() for own in states if own is not None]
        joined = {name: torch.cat([tensors[name] for tensors in named]) for name in named[0]}
        return torch.cat(outputs, 1), ContextState.from_tensors(joined)

    def _segments(
        self, x: Tensor, state: ContextState | None, place: int, return_state: bool
    ) -> tuple[Tensor, ContextState | None]:
        """Rows that all stand at slot `place` of a segment."""
        memory = None if state is None else state.memory
        rows: Rows | None = None if state is None else tuple(t[:, :place] for t in state[2:])
        weights = self._weights(x, memory) if state is None else state.weights
        outputs, start, length = [x[:, :0]], 0, x.shape[1]
        while start < length:
            if place == 0:
                weights, rows = self._weights(x, memory), None
            end = min(start + self.segment - place, length)
            slot = torch.arange(place, place + end - start, device=x.device)
            q, new = self._project(x[:, start:end], weights, slot)
            if rows is not None:
                new = tuple(torch.cat(pair, 1) for pair in zip(rows, new, strict=True))
            rows = new
            seen = torch.arange(place + end - start, device=x.device) <= slot[:, None]
            y = self._attend(q, rows, seen)
            if memory is not None and end - start == 1:
                memory = memory.map(torch.clone)  # the layer may update it in place
            # the last segment's state is wanted only by the caller
            keep = return_state or end < length
            z, memory = self.memory(self.write_norm(y), memory, None, keep)
            outputs.append(self.product(y, z))
            place, start = (place + end - start) % self.segment, end
        o = torch.cat(outputs, 1)
        return o, self._state(x, memory, weights, rows, place) if return_state else None

    def _token(
        self, x: Tensor, state: ContextState, return_state: bool
    ) -> tuple[Tensor, ContextState | None]:
        """One token for each row, wherever that stands in its segment; no synchronisation."""
        slot = (state.position % self.segment)[:, None]  # [B, 1]
        opens = (slot == 0)[..., None, None]  # [B, 1, 1, 1]
        now = state.memory.memory.weights
        pairs = zip(now, state.weights, strict=True)
        weights = tuple(torch.where(opens, new, old) for new, old in pairs)
        q, new_rows = self._project(x, weights, slot)
        slots = torch.arange(self.segment, device=x.device)
        here, before = (t[..., None, None] for t in (slots == slot, slots < slot))
        rows = tuple(
            torch.where(here, new, torch.where(before, old, 0).to(new.dtype))
            for new, old in zip(new_rows, state[2:], strict=True)
        )
        y = self._attend(q, rows, (slots <= slot)[:, None])
        in_place = not torch.is_grad_enabled()
        z, memory = self.memory(self.write_norm(y), state.memory, None, True)
        o = self.product(y, z)
        closes = (slot == self.segment - 1)[..., None, None]
        pairs = zip(memory.memory.weights, weights, strict=True)
        weights = tuple(torch.where(closes, new, old) for new, old in pairs)
        last = ContextState(memory, weights, *rows)
        if in_place:
            for old, new in zip((*state.weights, *state[2:]), (*weights, *rows), strict=True):
                old.copy_(new)
            last = state
        return o, last if return_state else None

    def _weights(self, x: Tensor, memory: MemoryState | None) -> tuple[Tensor, ...]:
        """The memory as it stands, each matrix [B, H, out, in]."""
        if memory is not None:
            return tuple(memory.memory.weights)
        dtype = torch.promote_types(x.dtype, torch.float32)
        return tuple(w.to(dtype).expand(x.shape[0], *w.shape) for w in self.memory.memory_weights)

    def _project(
        self,
        x: Tensor,  # [B, T, hidden_size]
        weights: tuple[Tensor, ...],  # at the segment's start
        slot: Tensor,  # [T] or [B, T] int64
    ) -> tuple[Tensor, Rows]:  # q and the rows [B, T, H, D]
        memory = self.memory
        query = self.query_proj(x).unflatten(-1, (memory.num_heads, memory.head_dim))
        query = F.normalize(query, dim=-1) * memory.q_scale[:, None]
        read = self.query_norm(read_memory(memory, weights, query).to(x.dtype))
        read = self.read_norm(self.read_proj(read.flatten(-2)))
        shape = (3, self.num_heads, self.head_dim)
        q, k, v = self.qkv_proj(x).unflatten(-1, shape).unbind(-3)
        read_k, read_v = self.qkv_proj(read).unflatten(-1, shape).unbind(-3)[1:]
        token = slot + self.segment
        q, k = rotate(q, token, self.rope_base), rotate(k, token, self.rope_base)
        return q, (k, v, rotate(read_k, slot, self.rope_base), read_v)

    def _attend(
        self,
        q: Tensor,  # [B, T, H, D]
        rows: Rows,
        seen: Tensor,  # [T, S] or [B, T, S] bool
    ) -> Tensor:  # [B, T, hidden_size]
        k, v, read_k, read_v = rows
        keys, values = torch.cat([read_k, k], 1), torch.cat([read_v, v], 1)
        mask = torch.cat([seen, seen], -1)
        if mask.dim() == 3:
            mask = mask.unsqueeze(1)
        q, keys, values = (tensor.transpose(1, 2) for tensor in (q, keys, values))
        o = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        y: Tensor = self.out_proj(o.transpose(1, 2).flatten(2))
        return y

    def _state(
        self,
        x: Tensor,
        memory: MemoryState | None,
        weights: tuple[Tensor, ...],
        rows: Rows | None,
        place: int,  # slot of the next token
    ) -> ContextState:
        """The state after the last token; no two of its tensors share memory."""
        if memory is None:  # not a single token
            _, memory = self.memory(x[:, :0], None, None, True)
        if place == 0:
            weights = self._weights(x, memory)
        if place == 0 or rows is None:
            shape = (x.shape[0], self.segment, self.num_heads, self.head_dim)
            rows = tuple(x.new_zeros(shape) for _ in range(4))
        else:
            room = (0, 0, 0, 0, 0, self.segment - place)
            rows = tuple(F.pad(tensor, room) for tensor in rows)
        return ContextState(memory, tuple(w.clone() for w in weights), *rows)
