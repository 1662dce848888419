"""`python -m bench.variants`: a training step and decoding of every named model, as a table.

Every variant of the tiny presets, alone and with each hybrid, float32 on the CPU: a training step
(forward, backward, AdamW) on 4 x 512 tokens, and 64 greedy tokens after a prompt of 512, batch 1.
Medians of rounds in which all models take turns. `--write` puts the table into docs/models.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from atlas_ext.models import Atlas, AtlasConfig, DeepTransformer
from atlas_ext.models.variants import ATLAS_VARIANTS, ATTENTION_VARIANTS, HYBRIDS
from bench.timing import stopwatch

BATCH, LENGTH, DECODED, VOCABULARY = 4, 512, 64, 256
PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
BEGIN, END = "<!-- begin python -m bench.variants -->", "<!-- end -->"

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


def training_step(model: Model) -> Callable[[], object]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(VOCABULARY, (BATCH, LENGTH))

    def step() -> None:
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        assert loss is not None
        loss.backward()
        optimizer.step()

    return step


def decoding(model: Model) -> Callable[[], object]:
    prompt = torch.randint(VOCABULARY, (1, LENGTH))
    return lambda: model.generate(prompt, max_new_tokens=DECODED, temperature=0.0)


def table(rounds: int) -> str:
    """Markdown; the prompt's prefill is measured by itself and taken off decoding."""
    found = models()
    calls: dict[tuple[str, str, str], Callable[[], object]] = {}
    for (variant, hybrid), model in found.items():
        calls[variant, hybrid, "step"] = training_step(model)
        calls[variant, hybrid, "decode"] = decoding(model)
        prompt = torch.randint(VOCABULARY, (1, LENGTH))
        calls[variant, hybrid, "prefill"] = lambda m=model, p=prompt: m.generate(  # type: ignore[misc]
            p, max_new_tokens=1, temperature=0.0
        )
    for call in calls.values():
        call()  # warm up
    seconds: dict[tuple[str, str, str], list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            seconds[key].append(stopwatch(call))
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    lines = [
        "| variant | hybrid | parameters, k | training step, ms | tokens/s | decoding, tokens/s |",
        "|---|---|---|---|---|---|",
    ]
    for (variant, hybrid), model in found.items():
        step = medians[variant, hybrid, "step"]
        decode = medians[variant, hybrid, "decode"] - medians[variant, hybrid, "prefill"]
        parameters = sum(p.numel() for p in model.parameters())
        lines.append(
            f"| `{variant}` | {hybrid or '–'} | {parameters / 1e3:.0f} | {1e3 * step:.0f} "
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
        page = PAGE.read_text()
        before, rest = page.split(BEGIN)
        _, after = rest.split(END, 1)
        PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


if __name__ == "__main__":
    main()
