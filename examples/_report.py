"""Figures and sentences from finished runs: demo/curves.png and demo/report.md."""

from __future__ import annotations

import math
import platform
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import torch
from _training import Run
from torch import Tensor

matplotlib.use("Agg")
from matplotlib import pyplot


@dataclass(frozen=True)
class Result:
    """A trained model with everything that is reported about it."""

    run: Run
    bits: Tensor  # [n] held-out bits per byte of each window
    shares: dict[str, float]

    @property
    def mean_bits(self) -> float:
        return float(self.bits.mean())


def compare(atlas: Result, ablation: Result, difference: str) -> str:
    """A plain sentence: which model is better on the held-out text, and how sure that is.

    Args:
        difference: what the ablation has instead of what Atlas has.
    """
    gains = ablation.bits - atlas.bits
    mean = float(gains.mean())
    error = float(gains.std() / len(gains) ** 0.5)
    verb = "beat" if mean > 0 else "did not beat"
    sentence = (
        f"Atlas {verb} its ablation {ablation.run.name} ({difference}): {atlas.mean_bits:.4f} "
        f"against {ablation.mean_bits:.4f} held-out bits per byte after {atlas.run.step} steps, a "
        f"difference of {mean:+.4f} (standard error over windows {error:.4f}; one seed). It has "
        f"{ablation.run.parameters / atlas.run.parameters:.0%} of Atlas's parameters."
    )
    if abs(mean) < 2 * error:
        sentence += " The difference is within two standard errors: call it a draw."
    return sentence


def judge_baseline(results: list[Result], bigram: float) -> tuple[bool, str]:
    """Whether every model beats the byte-bigram baseline, and a sentence that says so."""
    # put this way round, a loss that is not a number has not beaten anything
    failed = [result.run.name for result in results if not result.mean_bits < bigram]
    if failed:
        return False, f"FAILED: {' and '.join(failed)} did not beat the bigram ({bigram:.4f})."
    models = f"All {len(results)} models beat" if len(results) > 1 else "The model beats"
    return True, f"{models} the byte bigram ({bigram:.4f} bits per byte)."


def draw_curves(results: list[Result], bigram: float, path: Path) -> None:
    """Training loss (smoothed) and held-out loss of each model against the bytes seen."""
    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=150)
    for index, result in enumerate(results):
        run, colour = result.run, f"C{index}"
        tokens = run.options["batch"] * run.options["seq_len"] / 1e6
        loss = _smooth(run.history.loss)
        steps = range(1, len(loss) + 1)
        axes.plot(
            [step * tokens for step in steps], loss,
            color=colour, alpha=0.35, linewidth=1, label=f"{run.name}, training (smoothed)",
        )  # fmt: skip
        points = [*run.history.held_out[:-1], (run.step, result.mean_bits)]
        axes.plot(
            [step * tokens for step, _ in points], [bits for _, bits in points],
            color=colour, marker="o", markersize=4, label=f"{run.name}, held out",
        )  # fmt: skip
    axes.axhline(bigram, color="grey", linestyle="--", label="byte bigram, held out")
    lowest = min(result.mean_bits for result in results)
    axes.set_ylim(lowest - 0.25, bigram + 1.5)
    axes.set_xlabel("training text seen (million bytes)")
    axes.set_ylabel("loss (bits per byte)")
    axes.set_title("Byte-level language models on the same text, in the same order")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _smooth(values: list[float], keep: float = 0.95) -> list[float]:
    smoothed: list[float] = []
    for count, value in enumerate(values):
        if not math.isfinite(value):  # a skipped step
            value = smoothed[-1] if smoothed else values[0]
        weight = max(1 - keep, 1 / (count + 1))
        smoothed.append(value if not smoothed else smoothed[-1] + weight * (value - smoothed[-1]))
    return smoothed


def write_report(
    path: Path, results: list[Result], bigram: float, sentences: list[str], source: str, sample: str
) -> None:
    """The report as Markdown."""
    options = results[0].run.options
    text = [
        "# A small Atlas and its ablations trained on this machine",
        *sentences,
        "![loss curves](curves.png)",
        "## Held-out result",
        _table(*_result_rows(results, bigram)),
        f"Text: {source}. Each model took {options['steps']} steps of {options['batch']} × "
        f"{options['seq_len']} bytes, the same batches in the same order, AdamW at peak learning "
        f"rate {options['lr']}, seed {options['seed']}. Scored are {len(results[0].bits)} windows "
        f"of {options['seq_len']} bytes never trained on, all of a window but its first byte.",
        "## The models",
        *(_skipped(result.run) for result in results if result.run.history.skipped),
        _config_table(results),
        "## Share of a training step's time",
        *(_share_table(result) for result in results),
        "## Text generated by the first model",
        "```\n" + sample.replace("```", "'''") + "\n```",
        "## Machine",
        f"{platform.machine()}, {torch.get_num_threads()} threads, device {results[0].run.device}, "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}.",
    ]
    path.write_text("\n\n".join(text) + "\n", encoding="utf-8")


def _skipped(run: Run) -> str:
    return (
        f"{run.name} skipped {run.history.skipped} of its {run.step} steps, whose loss or gradient "
        "was not finite."
    )


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _result_rows(results: list[Result], bigram: float) -> tuple[list[str], list[list[str]]]:
    """Header and rows."""
    rows = [
        [
            result.run.name,
            f"{result.mean_bits:.4f}",
            f"{result.run.parameters:,}",
            f"{result.run.tokens_per_second:,.0f}",
            f"{result.run.history.seconds:.0f}",
        ]
        for result in results
    ]
    header = ["model", "held-out bits per byte", "parameters", "tokens/s in training", "seconds"]
    return header, [*rows, ["byte bigram", f"{bigram:.4f}", "–", "–", "–"]]


def result_lines(results: list[Result], bigram: float) -> list[str]:
    """The table of results for a terminal."""
    header, rows = _result_rows(results, bigram)
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in [header, *rows]
    ]


def _config_table(results: list[Result]) -> str:
    configs = [result.run.model.config.to_dict() for result in results]
    rows = [
        [f"`{name}`", *(f"{config[name]}" for config in configs)]
        for name in configs[0]
        if name not in ("vocab_size", "hybrid", "activation", "residual", "expansion")
    ]
    return _table(["", *(result.run.name for result in results)], rows)


def _share_table(result: Result) -> str:
    rows = [[kind, f"{share:.1%}"] for kind, share in result.shares.items()]
    return _table([f"{result.run.name}: operator", "share"], rows)
