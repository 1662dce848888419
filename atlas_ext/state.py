"""The states that carry a memory from one call to the next: plain data, no arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


def is_capturing() -> bool:
    """Whether CUDA calls are being captured in a graph, so that nothing may wait for the device."""
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return started and torch.cuda.is_current_stream_capturing()


class OmegaState(NamedTuple):
    """Everything :func:`atlas_ext.omega_rule` needs to go on exactly, and nothing else.

    N sequences, H heads, window W; the weights' shapes are those of the memory
    (docs/math/omega_rule.md, section 1). ``chunk_weights`` is always the point at which the next
    token's gradients are taken, also where that token opens a chunk (there the operators return
    ``chunk_weights`` equal to ``weights``).
    """

    weights: tuple[Tensor, ...]  # M_t, each [N, H, out, in], float32 (float64 for float64 inputs)
    momentum: tuple[Tensor, ...] | None  # S_t, shapes of weights; None: the rule has no momentum
    chunk_weights: tuple[Tensor, ...]  # M_ref, shapes of weights
    k_tail: Tensor  # [N, W-1, H, K] the last W-1 keys, oldest first, zeros before the start
    v_tail: Tensor  # [N, W-1, H, V]
    position: Tensor  # [N] int64, tokens seen

    @classmethod
    def init(
        cls,
        weights: Sequence[Tensor],  # each [H, out, in] or [N, H, out, in]
        *,
        num_sequences: int,
        window: int,
        key_dim: int,
        value_dim: int,
        momentum: bool = False,
        dtype: torch.dtype | None = None,
        tail_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> OmegaState:
        """The state before the first token: M_0, zero momentum, an empty window.

        ``dtype`` defaults to float32, to float64 for float64 weights; ``tail_dtype`` to ``dtype``;
        ``device`` to the weights' own. Every tensor is a copy of its own (gradients flow to
        ``weights``). Raises ValueError for weights of a wrong rank or leading size and for a window
        below 1.
        """
        _check_matrices("OmegaState.init", weights)
        matrices = tuple(weights)
        if not 1 <= len(matrices) <= 3:
            raise ValueError(
                f"OmegaState.init: weights: wanted 1, 2 or 3 matrices, got {len(matrices)}"
            )
        _check_count("OmegaState.init", "window", window, 1)
        _check_count("OmegaState.init", "num_sequences", num_sequences, 0)
        heads = matrices[0].shape[-3] if matrices[0].dim() >= 3 else -1
        for index, matrix in enumerate(matrices):
            shape = tuple(matrix.shape)
            if shape[:-2] not in ((heads,), (num_sequences, heads)):
                raise ValueError(
                    f"OmegaState.init: weights[{index}]: wanted [H, out, in] or "
                    f"[{num_sequences}, H, out, in] with one H for all, got {list(shape)}"
                )
        if dtype is None:
            dtype = torch.float64 if matrices[0].dtype == torch.float64 else torch.float32
        if device is None:
            device = matrices[0].device
        if tail_dtype is None:
            tail_dtype = dtype

        def own_copy(matrix: Tensor) -> Tensor:  # [N, H, out, in]
            return _own_copy(matrix.to(device=device, dtype=dtype), num_sequences)

        def tail(width: int) -> Tensor:  # [N, W-1, H, width]
            return torch.zeros(
                num_sequences, window - 1, heads, width, dtype=tail_dtype, device=device
            )

        current = tuple(own_copy(matrix) for matrix in matrices)
        return cls(
            weights=current,
            momentum=tuple(torch.zeros_like(matrix) for matrix in current) if momentum else None,
            chunk_weights=tuple(own_copy(matrix) for matrix in matrices),
            k_tail=tail(key_dim),
            v_tail=tail(value_dim),
            position=torch.zeros(num_sequences, dtype=torch.int64, device=device),
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> OmegaState:
        """The state with ``function`` applied to every tensor."""
        return OmegaState(*(_mapped(field, function) for field in self))

    def detach(self) -> OmegaState:
        """The state without autograd history (truncated backpropagation through time)."""
        return self.map(torch.detach)


class ExpOmegaState:
    """The growing state of :func:`atlas_ext.exp_omega_rule`: keys and coefficients of every token.

    Memories with the exponential map hold, for each token j of the past, a key and one coefficient
    row for each matrix that sees the map (docs/math/exp_omega_rule.md, section 1): one for the
    linear memory and the MLP, two for the gated MLP. The per-token buffers have room for
    ``capacity`` tokens, of which sequence n uses the first ``position[n]``; the rest is zero.
    """

    keys: Tensor  # [N, capacity, H, K]
    coefficients: tuple[Tensor, ...]  # b, or (b, bg): each [N, capacity, H, R], R = V or F
    momentum: tuple[Tensor, ...] | None  # of each coefficient, then S of W2 if there is one
    weights: tuple[Tensor, ...]  # () | (W0, W2) | (W0, W0g, W2), each [N, H, out, in]
    chunk_weights: tuple[Tensor, ...]  # at the chunk's start: coefficients, then weights
    k_tail: Tensor  # [N, W-1, H, K]
    v_tail: Tensor  # [N, W-1, H, V]
    position: Tensor  # [N] int64, tokens seen
    length: int  # tokens seen by the longest sequence

    def __init__(
        self,
        keys: Tensor,
        coefficients: tuple[Tensor, ...],
        momentum: tuple[Tensor, ...] | None,
        weights: tuple[Tensor, ...],
        chunk_weights: tuple[Tensor, ...],
        k_tail: Tensor,
        v_tail: Tensor,
        position: Tensor,
        length: int,
    ) -> None:
        self.keys = keys
        self.coefficients = coefficients
        self.momentum = momentum
        self.weights = weights
        self.chunk_weights = chunk_weights
        self.k_tail = k_tail
        self.v_tail = v_tail
        self.position = position
        self.length = length

    def map(self, function: Callable[[Tensor], Tensor]) -> ExpOmegaState:
        """The state with ``function`` applied to every tensor."""
        tensors = {name: value for name, value in vars(self).items() if name != "length"}
        fields = {name: _mapped(value, function) for name, value in tensors.items()}
        return ExpOmegaState(**fields, length=self.length)

    @property
    def capacity(self) -> int:
        """Tokens the buffers have room for."""
        return self.keys.shape[1]

    def reserve(self, n: int) -> None:
        """Make room for ``n`` further tokens; grows at least twofold, so that n calls cost O(n).

        Raises RuntimeError where that takes new buffers while a CUDA graph is captured: a replay
        would read the old ones.
        """
        wanted = self.length + n
        if wanted <= self.capacity:
            return
        if not torch.compiler.is_compiling() and is_capturing():
            raise RuntimeError(
                f"ExpOmegaState.reserve: n: wanted at most {self.capacity - self.length} while a "
                f"CUDA graph is captured, got {n}; reserve before capture"
            )
        extra = max(wanted, 2 * self.capacity) - self.capacity
        rows = len(self.coefficients)

        def grown(buffer: Tensor) -> Tensor:  # [N, capacity, H, R]
            room = buffer.new_zeros(buffer.shape[0], extra, *buffer.shape[2:])
            return torch.cat([buffer, room], dim=1)

        def grown_rows(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (*(grown(tensor) for tensor in tensors[:rows]), *tensors[rows:])

        self.keys = grown(self.keys)
        self.coefficients = grown_rows(self.coefficients)
        self.chunk_weights = grown_rows(self.chunk_weights)
        if self.momentum is not None:
            self.momentum = grown_rows(self.momentum)

    @classmethod
    def init(
        cls,
        weights: Sequence[Tensor] | None,  # each [H, out, in] or [N, H, out, in]
        *,
        num_sequences: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        window: int,
        momentum: bool = False,
        capacity: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> ExpOmegaState:
        """The state before the first token.

        ``weights``: None for the linear memory, (W0, W2) or (W0, W0g, W2) for the MLPs. ``dtype``
        defaults to float32, to float64 for float64 weights; ``device`` to the weights' own. Every
        tensor is a copy of its own. Raises ValueError for another number of weights or for wrong
        shapes.
        """
        op = "ExpOmegaState.init"
        _check_matrices(op, weights)
        matrices = tuple(weights or ())
        if len(matrices) not in (0, 2, 3):
            raise ValueError(
                f"{op}: weights: wanted None, (W0, W2) or (W0, W0g, W2), "
                f"got {len(matrices)} matrices"
            )
        for index, matrix in enumerate(matrices):
            if tuple(matrix.shape[:-2]) not in ((num_heads,), (num_sequences, num_heads)):
                raise ValueError(
                    f"{op}: weights[{index}]: wanted [{num_heads}, out, in] or "
                    f"[{num_sequences}, {num_heads}, out, in], got {list(matrix.shape)}"
                )
        for index, matrix in enumerate(matrices):
            hidden, last = matrices[0].shape[-2], index + 1 == len(matrices)
            sizes = (value_dim, hidden) if last else (hidden, key_dim)
            if tuple(matrix.shape[-2:]) != sizes:
                raise ValueError(
                    f"{op}: weights[{index}]: wanted {'[V, F]' if last else '[F, K]'} = "
                    f"{list(sizes)} per head, got {list(matrix.shape)}"
                )
        _check_count(op, "window", window, 1)
        _check_count(op, "num_sequences", num_sequences, 0)
        _check_count(op, "capacity", capacity, 0)
        if dtype is None:
            wide = bool(matrices) and matrices[0].dtype == torch.float64
            dtype = torch.float64 if wide else torch.float32
        if device is None and matrices:
            device = matrices[0].device
        width = matrices[0].shape[-2] if matrices else value_dim

        def rows(count: int, size: int) -> Tensor:  # [N, count, H, size]
            return torch.zeros(num_sequences, count, num_heads, size, dtype=dtype, device=device)

        def coefficients() -> tuple[Tensor, ...]:
            return tuple(rows(capacity, width) for _ in range(max(1, len(matrices) - 1)))

        def copies() -> tuple[Tensor, ...]:
            moved = (matrix.to(device=device, dtype=dtype) for matrix in matrices)
            return tuple(_own_copy(matrix, num_sequences) for matrix in moved)

        current = copies()
        return cls(
            keys=rows(capacity, key_dim),
            coefficients=coefficients(),
            momentum=(*coefficients(), *(torch.zeros_like(w) for w in current[-1:]))
            if momentum
            else None,
            weights=current,
            chunk_weights=(*coefficients(), *copies()),
            k_tail=rows(window - 1, key_dim),
            v_tail=rows(window - 1, value_dim),
            position=torch.zeros(num_sequences, dtype=torch.int64, device=device),
            length=0,
        )


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Of a tensor, of each of a tuple's, or of nothing."""
    if value is None:
        return None
    return tuple(map(function, value)) if isinstance(value, tuple) else function(value)


def _own_copy(matrix: Tensor, num_sequences: int) -> Tensor:  # [H, ...] or [N, H, ...]
    """One matrix for each sequence, [N, H, out, in], contiguous."""
    expanded = matrix.expand(num_sequences, *matrix.shape[-3:])
    return expanded.clone(memory_format=torch.contiguous_format)


def _check_count(op: str, name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{op}: {name}: wanted an integer >= {least}, got {value}")


def _check_matrices(op: str, weights: object) -> None:
    if isinstance(weights, Tensor):
        raise ValueError(f"{op}: weights: wanted a tuple of matrices, got a Tensor")
