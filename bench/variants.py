"""`python -m bench.variants`: a training step and decoding of every named model, as a table.

Every variant of the tiny presets, alone and with each hybrid, float32 on the CPU: a training step
(forward, backward, AdamW) on 4 x 512 tokens, and 64 greedy tokens after a prompt of 512, batch 1.
Medians of rounds in which all models take turns. `--write` puts the table into docs/models.md.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import torch

from atlas_ext.models import Atlas, AtlasConfig, DeepTransformer
from atlas_ext.models.variants import ATLAS_VARIANTS, ATTENTION_VARIANTS, HYBRIDS
from bench.quality.models import count_parameters
from bench.quality.report import fill
from bench.timing import Call, interleave, stopwatch

BATCH, LENGTH, DECODED, VOCABULARY = 4, 512, 64, 256
PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
PART = "python -m bench.variants"  # of the page

Model = Atlas | DeepTransformer


def models() -> dict[tuple[str, str], Model]:
    """By variant and hybrid ("": none)."""
    torch.manual_seed(0)
    found: dict[tuple[str, str], Model] = {}
    for variant in (*ATLAS_VARIANTS, *ATTENTION_VARIANTS):
        for hybrid in ("", *HYBRIDS) if variant in ATLAS_VARIANTS else ("",):
            config = AtlasConfig.preset(
                f"{variant}-tiny", vocab_size=VOCABULARY, hybrid=hybrid or None
            )
            kind = Atlas if variant in ATLAS_VARIANTS else DeepTransformer
            found[variant, hybrid] = kind(config)
    return found


def training_step(model: Model) -> Call:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH))

    def step() -> None:
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        assert loss is not None
        loss.backward()
        optimizer.step()

    return step


def generation(model: Model, tokens: int) -> Call:
    """After a prompt, which is read each time."""
    prompt = torch.randint(VOCABULARY, (1, LENGTH))
    return lambda: model.generate(prompt, max_new_tokens=tokens, temperature=0.0)


def table(rounds: int) -> str:
    """Markdown; the prompt's prefill is measured by itself and taken off decoding."""
    found = models()
    calls: dict[tuple[str, str, str], Call] = {}
    for (variant, hybrid), model in found.items():
        calls[variant, hybrid, "step"] = training_step(model)
        calls[variant, hybrid, "decode"] = generation(model, DECODED)
        calls[variant, hybrid, "prefill"] = generation(model, 1)
    seconds = interleave(calls, stopwatch, rounds)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    lines = [
        "| variant | hybrid | parameters, k | training step, ms | tokens/s | decoding, tokens/s |",
        "|---|---|---|---|---|---|",
    ]
    for (variant, hybrid), model in found.items():
        step = medians[variant, hybrid, "step"]
        decode = medians[variant, hybrid, "decode"] - medians[variant, hybrid, "prefill"]
        lines.append(
            f"| `{variant}` | {hybrid or '–'} | {count_parameters(model) / 1e3:.0f} "
            f"| {1e3 * step:.0f} "
            f"| {BATCH * LENGTH / step:,.0f} | {(DECODED - 1) / decode:,.0f} |".replace(",", " ")
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.variants", description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="the table in docs/models.md")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    text = table(options.rounds)
    print(text)
    if options.write:
        PAGE.write_text(fill(PAGE.read_text(), {PART: text}))


if __name__ == "__main__":
    main()
