"""`python -m bench.quality run TASK...` trains models on tasks; results that exist are kept."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from . import training
from .models import MODELS
from .tasks import TASKS

QUICK_RESULTS = Path("bench-results") / "quality"  # never among the committed ones


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train models on tasks")
    run.add_argument("tasks", nargs="+", choices=TASKS, metavar="TASK", help=", ".join(TASKS))
    run.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="MODEL")
    run.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    run.add_argument("--lr", type=float, default=training.LEARNING_RATE)
    run.add_argument("--quick", action="store_true", help="tiny tasks: does the program work?")
    run.add_argument("--threads", type=int, default=1)
    run.add_argument("--out", type=Path, help="folder of the JSON files")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Seeds outermost: an interrupted run has all models of the first seeds."""
    torch.set_num_threads(options.threads)
    folder = options.out or (QUICK_RESULTS if options.quick else training.RESULTS)
    for name in options.tasks:
        task = TASKS[name].quick() if options.quick else TASKS[name]
        for seed in range(options.seeds):
            for model in options.models:
                result = training.run(task, model, seed, folder, options.lr)
                print(
                    f"{name}  {model}-{seed}  {result['parameters']:,} parameters  "
                    f"accuracy {result['accuracy']:.3f}  loss {result['loss']:.3f}  "
                    f"{result['steps']} steps  {result['seconds']:.0f} s",
                    flush=True,
                )
    return 0


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    return run(options)


if __name__ == "__main__":
    raise SystemExit(main())
