"""The paper's claims at the scale of a laptop.

`rates` searches for the learning rate of each model. `run TASK...` trains models on tasks at these
rates, or runs an experiment on bare memories; results that exist are kept. `report` makes the
tables and plots of docs/results.md from them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from . import capacity, learnability, rates, report, training
from .models import ABLATIONS, MODELS
from .tasks import TASKS, Task

EXPERIMENTS = {"capacity": capacity, "learnability": learnability}  # of memories alone

QUICK_RESULTS = Path("bench-results") / "quality"  # never among the committed ones


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--models", nargs="+", choices=MODELS, metavar="MODEL",
        help="default: all, Atlas's ablations on mqar alone",
    )  # fmt: skip
    shared.add_argument("--quick", action="store_true", help="tiny tasks: does the program work?")
    shared.add_argument("--threads", type=int, default=1)
    shared.add_argument("--out", type=Path, help="folder of the JSON files")
    search = commands.add_parser("rates", parents=[shared], help="search for learning rates")
    search.add_argument("tasks", nargs="+", choices=rates.STEPS, metavar="TASK")
    run = commands.add_parser("run", parents=[shared], help="train models on tasks")
    names = (*TASKS, *EXPERIMENTS)
    run.add_argument("tasks", nargs="+", choices=names, metavar="TASK", help=", ".join(names))
    run.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, ...")
    write = commands.add_parser("report", help="make docs/results.md and its plots anew")
    write.add_argument("--results", type=Path, default=training.RESULTS)
    write.add_argument("--docs", type=Path, default=report.DOCS)
    return parser.parse_args(arguments)


def chosen_task(name: str, quick: bool) -> Task:
    return TASKS[name].quick() if quick else TASKS[name]


def compared(task: str) -> list[str]:
    return [name for name in MODELS if task == "mqar" or name not in ABLATIONS]


def run(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    folder = options.out or (QUICK_RESULTS if options.quick else training.RESULTS)
    if options.command == "rates":
        for name in options.tasks:
            task = chosen_task(name, options.quick)
            task = replace(task, steps=min(task.steps, rates.STEPS[name]))
            rates.search(task, options.models or compared(name), folder)
        return 0
    for name in options.tasks:
        if name in EXPERIMENTS:
            run_experiment(name, folder, options.quick)
        else:
            run_task(name, folder, options)
    return 0


def run_task(name: str, folder: Path, options: argparse.Namespace) -> None:
    """Seeds outermost: an interrupted run has all models of the first seeds."""
    task = chosen_task(name, options.quick)
    for seed in range(options.seeds):
        for model in options.models or compared(name):
            result = training.run(task, model, seed, folder, rates.chosen(folder, name, model))
            print(
                f"{name}  {model}-{seed}  {result['parameters']:,} parameters  "
                f"accuracy {result['accuracy']:.3f}  loss {result['loss']}  "
                f"{result['steps']} steps  {result['seconds']:.0f} s",
                flush=True,
            )


def run_experiment(name: str, folder: Path, quick: bool) -> None:
    path = folder / f"{name}.json"
    if path.exists():
        print(f"{name}: kept {path}")
        return
    module = EXPERIMENTS[name]
    result = module.run(module.QUICK if quick else module.Sizes())
    training.write(path, result | {"environment": training.environment()})


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.command != "report":
        return run(options)
    for path in report.write(options.results, options.docs):
        print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
