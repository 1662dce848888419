"""Softmax attention over the last W tokens, with a cache of constant size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_bounds, check_state
from .memory_layer import updates_in_place
from .rotary import rotate
from .state import AttentionState

NO_TOKEN = -1  # segment of a cache slot before the start of its sequence


class SlidingWindowAttention(nn.Module):
    """Causal attention in which token t sees the tokens t-W+1, ..., t of its sequence.

    Rotary positions, torch's scaled_dot_product_attention in blocks of W queries: time and memory
    O(T W). The cache holds W-1 tokens whatever the length of the text. Training and evaluation
    mode do the same.

    Args:
        hidden_size: width of input and output.
        num_heads: number of heads H.
        head_dim: D, width of a head, even; default hidden_size // num_heads.
        window: W.
        rope_base: of the rotary positions.

    Raises:
        ValueError: a size is out of range.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        *,
        head_dim: int | None = None,
        window: int = 512,
        rope_base: float = 10_000.0,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = hidden_size // num_heads if head_dim is None else head_dim
        self.window = window
        self.rope_base = rope_base
        if window < 1:
            raise ValueError(f"SlidingWindowAttention: window: wanted at least 1, got {window}")
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(
                "SlidingWindowAttention: head_dim: wanted an even number of at least 2 (pairs are "
                f"rotated), got {self.head_dim}"
            )
        inner = num_heads * self.head_dim
        self.qkv_proj = nn.Linear(hidden_size, 3 * inner, bias=False)
        self.out_proj = nn.Linear(inner, hidden_size, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws the weights with a standard deviation of 1/(2 sqrt(fan-in))."""
        for linear in (self.qkv_proj, self.out_proj):
            nn.init.normal_(linear.weight, std=0.5 * linear.in_features**-0.5)

    def extra_repr(self) -> str:
        return f"heads={self.num_heads}, head_dim={self.head_dim}, window={self.window}"

    def forward(
        self,
        x: Tensor,  # [B, T, hidden_size]
        state: AttentionState | None = None,
        cu_seqlens: Tensor | None = None,  # [N+1]
        return_state: bool = False,
    ) -> tuple[Tensor, AttentionState | None]:
        """Returns the output [B, T, hidden_size] and, if asked, the state after the last token.

        A sequence may be fed in pieces of any length. With `cu_seqlens` nothing crosses the bounds
        of the N packed sequences; then B = 1. A single token with a state and without gradients
        updates that state in place; otherwise a new one is returned.

        Raises:
            ValueError: x or the state has another shape, or B > 1 with cu_seqlens.
        """
        self._check(x, state, cu_seqlens)
        if cu_seqlens is not None:
            return self._packed(x, state, cu_seqlens, return_state)
        q, k, v = self._project(x)
        batch, length = x.shape[:2]
        position = torch.arange(length, device=x.device).expand(batch, length)
        if state is not None:
            position = position + state.position[:, None]
        q, k = rotate(q, position, self.rope_base), rotate(k, position, self.rope_base)
        if state is None:
            o = attend(q, k, v, min(self.window, max(length, 1)))
            return self.out_proj(o.flatten(2)), self._tail(k, v) if return_state else None
        k, v = torch.cat([state.k.to(k.dtype), k], 1), torch.cat([state.v.to(v.dtype), v], 1)
        slot = torch.arange(-(self.window - 1), length, device=x.device)
        segment = torch.where(slot < -state.position[:, None], NO_TOKEN, 0)
        o = attend(q, k, v, self.window, segment)
        last = AttentionState(k[:, length:], v[:, length:], state.position + length)
        if updates_in_place(x, cu_seqlens):
            for old, new in zip(state, last, strict=True):
                old.copy_(new)
            last = state
        return self.out_proj(o.flatten(2)), last if return_state else None

    def _packed(
        self, x: Tensor, state: AttentionState | None, cu_seqlens: Tensor, return_state: bool
    ) -> tuple[Tensor, AttentionState | None]:
        """One row in which each sequence follows its own cache; no synchronisation with a device.

        The caches' slots are queries, too, whose results are dropped: cheap beside the tokens of
        a prefill, and a decoding step is better made of B rows.
        """
        q, k, v = self._project(x)
        length, sequences = x.shape[1], cu_seqlens.shape[0] - 1
        starts = cu_seqlens.long()
        token = torch.arange(length, device=x.device)
        owner = torch.bucketize(token, starts[1:], right=True)
        position = token - starts[owner]
        if state is not None:
            position = position + state.position[owner]
        q = rotate(q, position[None], self.rope_base)
        k = rotate(k, position[None], self.rope_base)
        if state is None and not return_state:
            o = attend(q, k, v, min(self.window, max(length, 1)), owner[None])
            return self.out_proj(o.flatten(2)), None
        if state is None:
            empty = k.new_zeros(sequences, self.window - 1, *k.shape[2:])
            seen = torch.zeros(sequences, dtype=torch.int64, device=x.device)
            state = AttentionState(empty, empty, seen)
        pad = self.window - 1
        sequence = torch.arange(sequences, device=x.device)[:, None]
        slot = torch.arange(pad, device=x.device)
        head = (starts[:-1, None] + pad * sequence + slot).flatten()
        target = token + pad * (owner + 1)

        def laid_out(tail: Tensor, new: Tensor) -> Tensor:  # [N, pad, ...], [T, ...]
            row = new.new_zeros(length + pad * sequences, *new.shape[1:])
            row = row.index_copy(0, head, tail.to(new.dtype).flatten(0, 1))
            return row.index_copy(0, target, new)

        keys, values = laid_out(state.k, k[0]), laid_out(state.v, v[0])
        valid = torch.where(slot - pad < -state.position[:, None], NO_TOKEN, sequence)
        segment = laid_out(valid, owner)
        queries = laid_out(torch.zeros_like(state.k), q[0])
        window = min(self.window, max(keys.shape[0], 1))
        o = attend(queries[None], keys[None], values[None], window, segment[None])
        last = starts[1:, None] + pad * sequence + slot
        seen = state.position + starts[1:] - starts[:-1]
        final = AttentionState(keys[last], values[last], seen) if return_state else None
        return self.out_proj(o[:, target].flatten(2)), final

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:  # each [B, T, H, D]
        qkv: Tensor = self.qkv_proj(x).reshape(*x.shape[:2], 3, self.num_heads, self.head_dim)
        return qkv.unbind(2)

    def _tail(self, k: Tensor, v: Tensor) -> AttentionState:
        length, pad = k.shape[1], self.window - 1
        position = torch.full((k.shape[0],), length, dtype=torch.int64, device=k.device)

        def last(x: Tensor) -> Tensor:
            kept = x[:, max(length - pad, 0) :]
            return F.pad(kept, (0, 0, 0, 0, pad - kept.shape[1], 0)).contiguous()

        return AttentionState(last(k), last(v), position)

    def _check(self, x: Tensor, state: AttentionState | None, cu_seqlens: Tensor | None) -> None:
        op, width = "SlidingWindowAttention", self.qkv_proj.in_features
        if x.dim() != 3 or x.shape[-1] != width:
            raise ValueError(f"{op}: x: wanted [B, T, {width}], got {list(x.shape)}")
        check_bounds(op, x, cu_seqlens)
        check_state(op, state, AttentionState)
        sequences = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        wanted = (sequences, self.window - 1, self.num_heads, self.head_dim)
        if state is not None and tuple(state.k.shape) != wanted:
            raise ValueError(f"{op}: state.k: wanted {list(wanted)}, got {list(state.k.shape)}")


def attend(
    q: Tensor,  # [B, T, H, D]
    k: Tensor,  # [B, S, H, D], S = T, or W-1+T with a cache in front
    v: Tensor,  # [B, S, H, D]
    window: int,
    segment: Tensor | None = None,  # [B or 1, S] int64
) -> Tensor:  # [B, T, H, D]
    """Each query sees those of the last `window` keys up to its own that are of its segment.

    Queries go in blocks of min(W, T), each with the keys of its block and the W-1 before it.
    """
    batch, length, heads, width = q.shape
    if batch == 0 or length == 0:
        return q
    block = min(window, length)
    count = (length + block - 1) // block
    missing = count * block - length
    span = window - 1 + block
    before = window - 1 - (k.shape[1] - length)  # slots that no cache fills
    if segment is None:
        segment = q.new_zeros((1, k.shape[1]), dtype=torch.int64)

    def blocks(x: Tensor) -> Tensor:  # [B, S, H, D] -> [B * count, H, span, D]
        x = F.pad(x, (0, 0, 0, 0, before, missing))
        return x.unfold(1, span, block).permute(0, 1, 2, 4, 3).flatten(0, 1)

    queries = F.pad(q, (0, 0, 0, 0, 0, missing))
    queries = queries.reshape(batch * count, block, heads, width).transpose(1, 2)
    owner = F.pad(segment, (before, missing), value=NO_TOKEN).unfold(1, span, block)
    row = torch.arange(block, device=q.device)[:, None]
    column = torch.arange(span, device=q.device)
    in_window = (column >= row) & (column <= row + window - 1)
    mine = owner[..., window - 1 :, None]  # [B or 1, count, block, 1]
    own = column == row + window - 1  # padding sees itself: no row of the softmax is empty
    seen = in_window & (owner[..., None, :] == mine) & (owner[..., None, :] != NO_TOKEN) | own
    mask = seen.expand(batch, count, block, span).reshape(batch * count, 1, block, span)
    o = F.scaled_dot_product_attention(queries, blocks(k), blocks(v), attn_mask=mask)
    return o.transpose(1, 2).reshape(batch, count * block, heads, width)[:, :length]
