"""Chunks and their coefficients, which all eager rules share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def decays(log_decay: Tensor) -> tuple[Tensor, Tensor]:  # [G, C] -> [G, C], [G, C, C]
    """Cumulative decays inside a chunk, and the triangle of decays from token s to token t >= s."""
    total = log_decay.cumsum(-1)
    size = total.shape[-1]
    future = torch.ones(size, size, dtype=torch.bool, device=total.device).triu(1)
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(future, -math.inf)
    return total.exp(), between.exp()


def band(gamma: Tensor) -> Tensor:  # [G, C, W] -> [G, C, C + W - 1]
    """Gate of token t for key i at column t + W - 1 - j: a skewed copy, no scatter."""
    groups, size, window = gamma.shape
    padded = F.pad(gamma.flip(-1), (0, size))
    return padded.flatten(1)[:, : size * (size + window - 1)].view(groups, size, -1)


class Chunks:
    """Cuts [B, T, H, X] into [chunks, B*H, C, X], with an overhang where asked for."""

    def __init__(self, size: int, window: int, like: Tensor) -> None:
        self.size, self.overhang = size, window - 1
        self.batch, self.length, self.heads = like.shape[:3]
        self.count = self.length // size
        if self.count * size != self.length:
            raise ValueError(f"eager: T: wanted a multiple of {size}, got {self.length}")

    def cut(self, x: Tensor) -> Tensor:
        x = x.reshape(self.batch, self.count, self.size, self.heads, *x.shape[3:])
        x = x.permute(1, 0, 3, 2, *range(4, x.dim()))  # [chunks, B, H, C, ...]
        return x.reshape(self.count, self.batch * self.heads, *x.shape[3:])

    def cut_with_overhang(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, 0, self.overhang, 0))
        windows = x.unfold(1, self.size + self.overhang, self.size)  # [B, chunks, H, X, L]
        return windows.permute(1, 0, 2, 4, 3).reshape(
            self.count, self.batch * self.heads, -1, x.shape[-1]
        )

    def join(self, x: Tensor) -> Tensor:  # [chunks * B * H, C, V] -> [B, T, H, V]
        x = x.view(self.count, self.batch, self.heads, self.size, -1)
        return x.permute(1, 0, 3, 2, 4).reshape(self.batch, self.length, self.heads, -1)


@dataclass(frozen=True)
class Scans:
    """M_t = alpha M_hat - old S_hat - sum_i coefficients d_i x_i^T, and S_t alike, over chunks."""

    alpha: Tensor  # [..., C]
    theta: Tensor  # [..., C]
    step: Tensor  # [..., C, C] decay between a write and a read, times eta
    gates: Tensor  # [..., C, L]
    coefficients: Tensor  # [..., C, L]
    old: Tensor  # [..., C]

    @classmethod
    def of(cls, gamma: Tensor, eta: Tensor, log_alpha: Tensor, log_theta: Tensor) -> Scans:
        """From the gates of chunks: [..., C, W] and three times [..., C]."""
        lead = eta.shape[:-1]
        alpha, decay_alpha = decays(log_alpha.flatten(0, -2))
        theta, decay_theta = decays(log_theta.flatten(0, -2))
        gates = torch.bmm(decay_theta, band(gamma.flatten(0, -3)))
        step = decay_alpha * eta.flatten(0, -2).unsqueeze(1)
        old = torch.bmm(step, theta.unsqueeze(-1))
        parts = alpha, theta, step, gates, torch.bmm(step, gates), old
        views = [part.view(*lead, *part.shape[1:]) for part in parts]
        return cls(*views[:-1], views[-1].squeeze(-1))

    def flatten(self) -> Scans:
        """Chunks and groups as one batch."""
        fields = (self.alpha, self.theta, self.step, self.gates, self.coefficients, self.old)
        return Scans(*(field.flatten(0, 1) for field in fields))
