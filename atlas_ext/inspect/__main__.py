"""`python -m atlas_ext.inspect`: figures and numbers of one memory while it reads a text."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from torch import Tensor

from .memory_trace import MemoryTrace, inspect_memory
from .source import load_source, read_tokens


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m atlas_ext.inspect",
        description="Look at one memory of a model while it reads a text (docs/inspect.md).",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "model", nargs="?", default="atlas-tiny",
        help="checkpoint of train_lm.py, folder of transformers, or preset (untrained)",
    )  # fmt: skip
    add("--text", type=Path, default=Path(textwrap.__file__), help="file to read")
    add("--tokens", type=int, default=128, help="of the text, from its start")
    add("--layer", type=int, default=0)
    add("--head", type=int, default=0)
    add("--out", type=Path, default=Path("inspected"), help="folder for figures and numbers")
    return parser


def write_numbers(trace: MemoryTrace, pieces: list[str], title: str, path: Path) -> None:
    """All numbers of the figures as JSON, under the names of `MemoryTrace`."""
    numbers: dict[str, Any] = {"title": title, "tokens": pieces}
    for name, value in vars(trace).items():
        numbers[name] = _plain(value)
    path.write_text(json.dumps(numbers) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def summary(trace: MemoryTrace) -> str:
    """A sentence with the means of the losses."""
    start, before, after = (
        f"{float(losses.mean()):.4g}"
        for losses in (trace.loss_start, trace.loss_before, trace.loss_after)
    )
    return (
        f"Inner loss of a token's own pair, mean of {len(trace.o)} tokens: {start} for M_0, "
        f"{before} before its write, {after} after it."
    )


def main() -> None:
    args = make_parser().parse_args()
    try:
        from .figures import draw_gates, draw_losses, draw_singular_values

        source = load_source(args.model)
        model = source.model
        ids, pieces = read_tokens(args.text, args.tokens, args.model, model.config.vocab_size)
        trace = inspect_memory(model, ids, args.layer, args.head)
    except ModuleNotFoundError as error:
        raise SystemExit(f"inspect: {error}: pip install 'atlas_ext[demo]'") from None
    except (ValueError, ImportError) as error:
        raise SystemExit(str(error)) from None
    title = f"{source.title}, layer {args.layer}, head {args.head}, reading {args.text.name}"
    args.out.mkdir(parents=True, exist_ok=True)
    draws = {
        "gates": draw_gates,
        "losses": draw_losses,
        "singular_values": draw_singular_values,
    }
    for name, draw in draws.items():
        draw(trace, pieces, title).savefig(args.out / f"{name}.png")
    write_numbers(trace, pieces, title, args.out / "numbers.json")
    if not source.trained:
        print(f"No checkpoint: {args.model} as it is initialised, untrained.")
    print(summary(trace))
    print(f"Written: {args.out}/{', '.join(f'{name}.png' for name in draws)}, numbers.json")


if __name__ == "__main__":
    main()
