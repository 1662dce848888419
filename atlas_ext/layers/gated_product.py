"""How an attention and a memory are put together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

INITIAL_SHARE = 0.3  # of the product's weights: what a block adds to the residual stream at first


class GatedProduct(nn.Module):
    """`norm_a(attention) * sigmoid(norm_m(memory))`, both RMS-normalised with a learned vector.

    The product is that of Titans, which the paper refers to for MAG and MAC. Written so that the
    memory gates what the attention carries.
    """

    def __init__(self, hidden_size: int, *, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.memory_norm = nn.RMSNorm(hidden_size, eps=norm_eps)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """A small share for the product, and a gate that is half open."""
        nn.init.constant_(self.attention_norm.weight, INITIAL_SHARE)
        nn.init.ones_(self.memory_norm.weight)

    def forward(
        self,
        attention: Tensor,  # [B, T, hidden_size]
        memory: Tensor,  # [B, T, hidden_size]
    ) -> Tensor:
        y: Tensor = self.attention_norm(attention) * torch.sigmoid(self.memory_norm(memory))
        return y
