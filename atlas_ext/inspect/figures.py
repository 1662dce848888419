"""Figures of a trace, all of them along the text: gates, inner losses, singular values."""

from __future__ import annotations

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .memory_trace import MemoryTrace

LEGIBLE = 128  # tokens whose text fits below the axis
DRAWN = 1e-3  # of the largest singular value: what is smaller is left out
MATRICES = {1: ("W",), 2: ("W1", "W2"), 3: ("W1", "W3", "W2")}


def draw_gates(trace: MemoryTrace, pieces: list[str], title: str) -> Figure:
    """alpha, theta, eta and the sum of gamma, as far as the memory has them."""
    gates = {
        "retention\nalpha": trace.alpha,
        "momentum\ntheta": trace.theta,
        "step\neta": trace.eta,
        "window\nsum of gamma": trace.gamma_sum,
    }
    present = {name: values for name, values in gates.items() if values is not None}
    figure, axes = _panels(len(present), pieces, f"Gates of {title}")
    for panel, (name, values) in zip(axes, present.items(), strict=True):
        panel.plot(values, marker=".", markersize=3, linewidth=1)
        panel.set_ylabel(name)
    return figure


def draw_losses(trace: MemoryTrace, pieces: list[str], title: str) -> Figure:
    """Each token's own pair: how well M_0 answers it, and the memory before and after its write."""
    figure, (losses, gains) = _panels(2, pieces, f"Inner loss of {title}")
    losses.plot(trace.loss_start, color="grey", linewidth=1, label="M_0, which has read nothing")
    losses.plot(
        trace.loss_before, color="C1", linewidth=2.5, alpha=0.6, label="memory before the write"
    )
    losses.plot(trace.loss_after, color="C0", linewidth=1, label="memory after the write")
    losses.set_ylabel("loss of the token's\nown key and value")
    losses.legend(fontsize=8, ncols=3)
    gained = {"the text before it": trace.loss_start - trace.loss_before}
    gained["its own write"] = trace.loss_before - trace.loss_after
    for (name, values), colour in zip(gained.items(), ("C1", "C0"), strict=True):
        gains.plot(values, color=colour, linewidth=1, label=f"taken away by {name}")
    gains.axhline(0, color="black", linewidth=0.5)
    gains.set_ylabel("loss taken away")
    gains.legend(fontsize=8, ncols=2)
    return figure


def draw_singular_values(trace: MemoryTrace, pieces: list[str], title: str) -> Figure:
    """Of S_t, and with Newton-Schulz of what is written; a row of panels for each matrix."""
    names = MATRICES[len(trace.singular_values)]
    count = len(names) + len(trace.orthogonalised)
    figure, axes = _panels(count, pieces, f"Singular values of {title}")
    for panel, name, values in zip(axes, names, trace.singular_values, strict=False):
        _draw_lines(panel, list(range(len(values))), values)
        panel.set_yscale("log")
        largest = float(values.max())
        if largest > 0:
            panel.set_ylim(largest * DRAWN, largest * 2)
        panel.set_ylabel(f"momentum S_t\nof {name}")
    written = trace.writes.nonzero().flatten().tolist()
    for panel, name, values in zip(axes[len(names) :], names, trace.orthogonalised, strict=False):
        _draw_lines(panel, written, values)
        panel.set_ylim(0, 1.3)
        panel.set_ylabel(f"written: NS(S_t)\nof {name}")
    return figure


def _draw_lines(panel: Axes, positions: list[int], values: Tensor) -> None:  # [n, R]
    """A line for each singular value, the largest darkest."""
    marker = "." if len(positions) < LEGIBLE else ""
    count = values.shape[1]
    for index in range(count):
        colour = colormaps["viridis"](0.9 * index / count)
        panel.plot(positions, values[:, index], color=colour, marker=marker, linewidth=0.8)


def _panels(count: int, pieces: list[str], title: str) -> tuple[Figure, list[Axes]]:
    """Panels one below the other with the text along their common axis."""
    figure = Figure(figsize=(13, 1 + 1.9 * count), dpi=110, layout="constrained")
    axes: list[Axes] = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    figure.suptitle(title)
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.margins(x=0.01)
    axes[-1].set_xlabel("position in the text (tokens)")
    if len(pieces) <= LEGIBLE:
        axes[-1].set_xlabel("the text, token by token")
        marks = ["".join(map(_visible, piece)) for piece in pieces]
        turned = 90 if max(map(len, marks)) > 1 else 0
        # a dollar sign is one, not the start of a formula
        axes[-1].set_xticks(range(len(marks)), marks, fontsize=7, rotation=turned, parse_math=False)
    return figure, axes


def _visible(character: str) -> str:
    mark = {"\n": "↵", "\t": "→", " ": "·"}.get(character, character)
    return mark if mark.isprintable() else "□"
