"""Choosing the next token, and prompts of unequal length."""

from __future__ import annotations

import torch
from torch import Tensor


def check_sampling(
    max_new_tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    eos_token_id: int | None,
) -> None:
    """Raises ValueError when an option of `generate` is out of range."""
    if not isinstance(max_new_tokens, int) or max_new_tokens < 0:
        wanted = "an integer >= 0"
        raise ValueError(f"generate: max_new_tokens: wanted {wanted}, got {max_new_tokens}")
    if not temperature >= 0:
        raise ValueError(f"generate: temperature: wanted at least 0, got {temperature}")
    if top_k is not None and top_k < 1:
        raise ValueError(f"generate: top_k: wanted None or at least 1, got {top_k}")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p: wanted None or a number in (0, 1], got {top_p}")
    if eos_token_id is not None and not isinstance(eos_token_id, int):
        raise ValueError(f"generate: eos_token_id: wanted None or one id, got {eos_token_id}")


def sample_token(
    logits: Tensor,  # [B, V]
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> Tensor:  # [B]
    """Draws a token per row; temperature 0 takes the likeliest.

    `top_k` keeps the k likeliest tokens, `top_p` the fewest likeliest ones whose probabilities
    (after temperature and top_k) sum to at least p.
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        threshold = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if top_p is not None and top_p < 1:
        sorted_logits, order = logits.sort(dim=-1, descending=True)
        probabilities = sorted_logits.softmax(dim=-1)
        surplus = probabilities.cumsum(dim=-1) - probabilities >= top_p
        logits = logits.masked_fill(surplus.scatter(-1, order, surplus), -torch.inf)
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)


def unpad(
    input_ids: Tensor,  # [B, T]
    attention_mask: Tensor,  # [B, T]
) -> tuple[Tensor, Tensor]:
    """Left-padded prompts as packed ones: ids [1, tokens] and their bounds, cu_seqlens [B+1].

    Raises:
        ValueError: the mask has another shape, holes, padding on the right, or an empty row.
    """
    name = "generate: attention_mask"
    if attention_mask.shape != input_ids.shape:
        got = list(attention_mask.shape)
        raise ValueError(f"{name}: wanted {list(input_ids.shape)}, got {got}")
    mask = attention_mask.bool()
    ordered = (mask[:, 1:] >= mask[:, :-1]).all(dim=1) & mask[:, -1:].all(dim=1)
    if not bool(ordered.all()):
        row = int((~ordered).nonzero()[0])
        raise ValueError(
            f"{name}: wanted zeros (padding) and then at least one 1 in each row, "
            f"got {attention_mask[row].tolist()} in row {row}"
        )
    bounds = torch.nn.functional.pad(mask.sum(dim=1).cumsum(0), (1, 0))
    return input_ids[mask].unsqueeze(0), bounds
