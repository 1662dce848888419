"""SlidingWindowAttention: against the definition, in pieces, packed, decoding."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from atlas_ext.layers import AttentionState, SlidingWindowAttention
from atlas_ext.layers.rotary import rotate

HIDDEN, HEADS, LENGTH = 12, 2, 23
WINDOWS = pytest.mark.parametrize("window", [1, 4, 7, 40])
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def make_layer(window: int) -> SlidingWindowAttention:
    torch.manual_seed(0)
    layer = SlidingWindowAttention(HIDDEN, HEADS, window=window)
    torch.nn.init.normal_(layer.qkv_proj.weight)  # scores that differ
    return layer


def definition(layer: SlidingWindowAttention, x: Tensor) -> Tensor:
    """The whole matrix of scores, with rotations as complex numbers."""
    length, width = x.shape[1], layer.head_dim
    q, k, v = layer.qkv_proj(x).double().reshape(*x.shape[:2], 3, HEADS, width).unbind(2)
    rates = 10_000.0 ** (-torch.arange(width // 2).double() / (width // 2))
    turns = torch.polar(torch.ones(1).double(), torch.arange(length)[:, None] * rates)
    q, k = (torch.complex(*t.chunk(2, dim=-1)) * turns[:, None] for t in (q, k))
    scores = torch.einsum("bthd,bshd->bhts", q, k.conj()).real / width**0.5
    age = torch.arange(length)[:, None] - torch.arange(length)
    scores = scores.masked_fill((age < 0) | (age >= layer.window), -torch.inf)
    y = torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)
    return layer.out_proj(y.flatten(2).float())


@WINDOWS
@pytest.mark.parametrize("length", [0, 1, 6, 7, LENGTH])
def test_definition(window: int, length: int) -> None:
    layer = make_layer(window)
    x = torch.randn(2, length, HIDDEN)
    torch.testing.assert_close(layer(x)[0], definition(layer, x), **CLOSE)


@WINDOWS
def test_gradients(window: int) -> None:
    layer = make_layer(window)
    x = torch.randn(2, 9, HIDDEN, requires_grad=True)
    gradients = []
    for function in (lambda x: layer(x)[0], lambda x: definition(layer, x)):
        layer.zero_grad()
        (own,) = torch.autograd.grad(function(x).square().sum(), x, retain_graph=True)
        function(x).square().sum().backward()
        gradients.append([own, *(p.grad for p in layer.parameters())])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)


@WINDOWS
def test_goes_on_at_every_split(window: int) -> None:
    layer = make_layer(window)
    x = torch.randn(2, LENGTH, HIDDEN)
    with torch.no_grad():
        whole, last = layer(x, return_state=True)
        for split in range(0, LENGTH, 3):
            first, state = layer(x[:, :split], return_state=True)
            second, state = layer(x[:, split:], state, return_state=True)
            torch.testing.assert_close(torch.cat([first, second], 1), whole, **CLOSE)
            for tensor, expected in zip(state, last, strict=True):
                torch.testing.assert_close(tensor, expected, **CLOSE)


@WINDOWS
def test_decodes_in_place_in_constant_memory(window: int) -> None:
    layer = make_layer(window)
    x = torch.randn(2, LENGTH, HIDDEN)
    with torch.no_grad():
        whole, _ = layer(x)
        y, state = layer(x[:, :3], return_state=True)
        outputs, storage = [y], [t.data_ptr() for t in state]
        for t in range(3, LENGTH):
            y, state = layer(x[:, t : t + 1], state, return_state=True)
            outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, **CLOSE)
    assert [t.data_ptr() for t in state] == storage
    assert state.k.shape == (2, window - 1, HEADS, HIDDEN // HEADS)
    assert state.position.tolist() == [LENGTH, LENGTH]


@WINDOWS
@pytest.mark.parametrize("lengths", [[7, 0, 15, 1], [0, 3], []])
def test_keeps_packed_sequences_apart(window: int, lengths: list[int]) -> None:
    layer = make_layer(window)
    bounds = F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0), (1, 0))
    x = torch.randn(1, sum(lengths), HIDDEN)
    alone = [layer(piece, return_state=True) for piece in x.split(lengths, 1) if lengths]
    y, _ = layer(x, cu_seqlens=bounds)
    y_too, state = layer(x, cu_seqlens=bounds, return_state=True)
    expected = torch.cat([x[:, :0], *(piece for piece, _ in alone)], 1)
    torch.testing.assert_close(y, expected, **CLOSE)
    torch.testing.assert_close(y_too, expected, **CLOSE)
    for i, (_, own) in enumerate(alone):
        for tensor, one in zip(state, own, strict=True):
            torch.testing.assert_close(tensor[i : i + 1], one, **CLOSE)
    further = torch.randn(1, sum(lengths), HIDDEN)
    y, state = layer(further, state, cu_seqlens=bounds, return_state=True)
    rest = [
        layer(piece, own, return_state=True)[0]
        for piece, (_, own) in zip(further.split(lengths, 1), alone, strict=False)
    ]
    torch.testing.assert_close(y, torch.cat([x[:, :0], *rest], 1), **CLOSE)
    assert state.position.tolist() == [2 * length for length in lengths]


@WINDOWS
def test_causal_to_the_bit(window: int) -> None:
    layer = make_layer(window)
    x = torch.randn(1, LENGTH, HIDDEN)
    with torch.no_grad():
        y, _ = layer(x)
        for t in (1, 5, 12, LENGTH - 1):
            changed = x.clone()
            changed[:, t:] = torch.randn(1, LENGTH - t, HIDDEN)
            assert torch.equal(layer(changed)[0][:, :t], y[:, :t])


def test_rotations_are_exact_after_ten_million_tokens() -> None:
    """Scores depend on the distance alone, however far the text has come."""
    x = torch.randn(2, 1, 1, 64)

    def score(start: int) -> Tensor:
        q = rotate(x[0], torch.tensor([start + 5]), 10_000.0)
        k = rotate(x[1], torch.tensor([start]), 10_000.0)
        return (q * k).sum()

    torch.testing.assert_close(score(10**7), score(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    layer = make_layer(4).to(dtype)
    x = torch.randn(2, 9, HIDDEN, dtype=dtype)
    y, state = layer(x, return_state=True)
    more, _ = layer(x, state, return_state=True)
    assert y.dtype == more.dtype == state.k.dtype == dtype


def test_errors_name_what_is_wrong() -> None:
    layer = make_layer(4)
    x = torch.zeros(2, 3, HIDDEN)
    state = AttentionState(*torch.zeros(2, 2, 2, HEADS, 6), torch.zeros(2, dtype=torch.int64))
    for arguments, named in (
        ((torch.zeros(2, 3, 5),), r"x: wanted \[B, T, 12\], got \[2, 3, 5\]"),
        ((x, None, torch.tensor([0, 3])), "x: wanted batch 1 with cu_seqlens, got 2"),
        ((x, state), r"state\.k: wanted \[2, 3, 2, 6\], got \[2, 2, 2, 6\]"),
    ):
        with pytest.raises(ValueError, match=f"SlidingWindowAttention: {named}"):
            layer(*arguments)
    with pytest.raises(ValueError, match="window: wanted at least 1, got 0"):
        SlidingWindowAttention(HIDDEN, HEADS, window=0)
    with pytest.raises(ValueError, match=r"head_dim: wanted an even number .* got 3"):
        SlidingWindowAttention(HIDDEN, 4)
