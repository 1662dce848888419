"""Trains a small byte-level Atlas and ablations of it, and compares them.

    python examples/train_lm.py --out demo                  # a few minutes on 2 cores
    python examples/train_lm.py --out mine --data a.txt b.txt --hidden 256 --layers 6
    python examples/train_lm.py --out mine --ablations no-muon window-1 no-polynomial
    python examples/train_lm.py --out demo --resume         # go on after Ctrl-C
    python examples/train_lm.py --out demo --sample --prompt "def "
    torchrun --nproc-per-node 2 examples/train_lm.py --out big --save-every 100   # and --resume

All models have the same width, depth and heads and see the same batches for the same number of
steps; an ablation lacks one thing that Atlas's memory has, or all of them (gated-delta). Under
torchrun each process holds a part of the weights and trains on a part of each batch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from _data import (
    Text,
    bigram_bits_per_byte,
    check_length,
    held_out_windows,
    load_text,
    training_batch,
)
from _models import ABLATIONS, DEFAULT_ABLATIONS, FIRST, make_configs
from _profile import operator_shares
from _report import Result, compare, draw_curves, judge_baseline, result_lines, write_report
from _training import HELD_OUT_WINDOWS, Run, load_model

from atlas_ext.models import Atlas, AtlasConfig

# what a checkpoint fixes; --resume takes these from it
RUN_OPTIONS = ("steps", "batch", "seq_len", "lr", "weight_decay", "seed", "data")
INTERRUPTED = 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a small byte-level Atlas and ablations of it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("demo"), help="folder for checkpoints and report")
    add("--data", nargs="+", metavar="FILE", help="text to train on; default: standard library")
    add("--variant", default="atlas", help="of the first model, as in AtlasConfig")
    add("--memory", help="of the first model: linear, mlp or gated_mlp; default: the variant's")
    add("--hidden", type=int, default=64, help="width of the models")
    add("--layers", type=int, default=2)
    add("--heads", type=int, default=4)
    add("--window", type=int, default=8, help="tokens in the inner loss (windowed variants)")
    add("--degree", type=int, default=2, help="of the polynomial features; 0: none")
    add("--chunk-size", type=int, default=16, help="of all models")
    add("--ns-every", type=int, default=32, help="tokens between writes of Muon variants")
    add("--step-size", type=float, default=None, help="initial eta of the first model")
    add("--steps", type=int, default=600)
    add("--batch", type=int, default=8)
    add("--seq-len", type=int, default=256)
    add("--lr", type=float, default=6e-3, help="peak learning rate")
    add("--weight-decay", type=float, default=0.1)
    add("--seed", type=int, default=0)
    add("--device", default="cpu", help="cpu or cuda")
    add(
        "--ablations", nargs="*", metavar="NAME", choices=ABLATIONS,
        help=f"of {', '.join(ABLATIONS)}; no name: none; default: {' '.join(DEFAULT_ABLATIONS)}",
    )  # fmt: skip
    add("--resume", action="store_true", help="go on with the runs in --out")
    add("--save-every", type=int, default=0, help="steps between checkpoints; 0: at the end only")
    add("--stop-after", type=int, metavar="STEP", help="stop there as if interrupted")
    add("--sample", action="store_true", help="only generate, with the model in --out")
    add("--prompt", default="def ", help="what generated text starts with")
    add("--tokens", type=int, default=400, help="bytes to generate")
    add("--temperature", type=float, default=0.7)
    return parser


def launched() -> bool:
    """Whether torchrun has started this process."""
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def run_type() -> type[Run]:
    if not launched():
        return Run
    from _distributed import DistributedRun  # takes seconds to import

    return DistributedRun


def make_runs(args: argparse.Namespace) -> list[Run]:
    """Fresh runs of the first model and its ablations."""
    kind = run_type()
    configs = make_configs(args)
    options = {name: getattr(args, name) for name in RUN_OPTIONS}
    options["models"] = list(configs)
    return [kind(name, config, options, args.device, args.out) for name, config in configs.items()]


def resume_runs(args: argparse.Namespace) -> list[Run]:
    """The runs of a folder as they were left, with the options they were started with."""
    kind = run_type()
    options = kind.read_about(args.out, FIRST)["options"]
    runs = []
    for name in options["models"]:
        about = kind.read_about(args.out, name)
        run = kind(name, AtlasConfig(**about["config"]), about["options"], args.device, args.out)
        run.load()
        runs.append(run)
    return runs


def generate_text(model: Atlas, args: argparse.Namespace) -> str:
    prompt = torch.tensor([list(args.prompt.encode() or b"\n")], device=args.device)
    ids = model.generate(
        prompt,
        max_new_tokens=args.tokens,
        temperature=args.temperature,
        generator=torch.Generator(args.device).manual_seed(args.seed),
    )
    return bytes(ids[0].tolist()).decode(errors="replace")


def measure(run: Run, text: Text) -> Result:
    options = run.options
    length = options["seq_len"]
    bits = run.held_out_bits(held_out_windows(text, HELD_OUT_WINDOWS, length))
    ids = training_batch(text, run.step, options["batch"], length, options["seed"])
    return Result(run, bits, operator_shares(run, ids))


def report(runs: list[Run], text: Text, args: argparse.Namespace) -> int:
    """Prints and writes the results; 1 when a model does not beat the bigram."""
    results = [measure(run, text) for run in runs]
    windows = held_out_windows(text, HELD_OUT_WINDOWS, runs[0].options["seq_len"])
    bigram = bigram_bits_per_byte(text, windows)
    beaten, sentence = judge_baseline(results, bigram)
    first, *others = results
    sentences = [sentence, *(compare(first, other, ABLATIONS[other.run.name]) for other in others)]
    sample = generate_text(runs[0].model, args)
    draw_curves(results, bigram, args.out / "curves.png")
    write_report(args.out / "report.md", results, bigram, sentences, text.source, sample)
    print(f"\nAfter {first.run.step} steps")
    print(*result_lines(results, bigram), "", *sentences, sep="\n")
    print(f"\nShare of a training step's time ({runs[0].name})")
    for kind, share in results[0].shares.items():
        print(f"  {share:6.1%}  {kind}")
    print(f"\nGenerated text\n{sample}\n\nWritten: {args.out}/report.md, curves.png, checkpoints")
    return 0 if beaten else 1


def train(args: argparse.Namespace) -> int:
    """Trains all models and reports; under torchrun every process runs this, the first reports."""
    try:
        runs = resume_runs(args) if args.resume else make_runs(args)
    except ValueError as error:  # a configuration that makes no sense: its text says what
        raise SystemExit(str(error)) from None
    options = runs[0].options
    text = load_text(options["data"])
    check_length(text, options["seq_len"])
    for run in runs:
        run.save()  # at step 0 too, so that whatever happens next can be resumed
    say = (lambda *_: None) if runs[0].quiet else print
    say(f"Text: {text.source}: {len(text.training):,} bytes, {len(text.held_out):,} held out")
    for run in runs:
        say(f"{run.name}: {run.model.config.variant}, {run.parameters:,} parameters")
        if not run.train(text, args.stop_after, args.save_every):
            say(f"\nStopped after step {run.step} of {options['steps']}; saved {run.path}.")
            say(f"Go on with: {start_command()} --out {args.out} --resume")
            return INTERRUPTED
    whole = [run.gather() for run in runs]
    return 0 if runs[0].quiet else report(whole, text, args)


def start_command() -> str:
    if not launched():
        return f"python {sys.argv[0]}"
    return f"torchrun --nproc-per-node {torch.distributed.get_world_size()} {sys.argv[0]}"


def main() -> int:
    args = make_parser().parse_args()
    if args.sample:
        model = load_model(args.out / f"{FIRST}.safetensors", args.device)
        print(generate_text(model, args))
        return 0
    if not launched():
        return train(args)
    from _distributed import processes

    with processes(args.device) as args.device:
        return train(args)


if __name__ == "__main__":
    sys.exit(main())
