"""`python -m bench.run`: every operator beside the best that PyTorch has, at several lengths.

An operator whose cases in the tests' registry fail gets no timing. The exit status says whether all
results were right, not whether they were fast.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import torch

import atlas_ext
from bench import cases, packages, page, plots, report, revision
from bench.cases.base import SIZES, Case
from bench.device import Cpu, Cuda, Device
from bench.gate import Outcome, run_registry
from bench.measure import failure, measure, require_right
from bench.report import Report
from bench.setting import DEFAULT_DTYPES, DEVICES, DTYPES, Setting, build_info, unavailable
from bench.timing import LEAST_ROUNDS

ROUNDS = 21


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--device", choices=DEVICES, default="cpu",
        help="emulated: the CUDA kernels on the CPU, checked and not timed",
    )  # fmt: skip
    parser.add_argument("--op", nargs="+", choices=cases.OPS, default=cases.OPS, metavar="OP")
    parser.add_argument("--size", nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: the device's own")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="a verdict needs at least 15")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--base", metavar="REV", help="also a git revision, and compare")
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep the results")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="time and memory over length")
    parser.add_argument(
        "--page", type=Path, metavar="FILE",
        help="renew these operators' part of a page; results and plots in the folder of its name",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    options.dtype = tuple(options.dtype or DEFAULT_DTYPES[options.device])
    if options.device == "cpu" and "tf32" in options.dtype:
        parser.error("--dtype tf32: wanted --device cuda or emulated, got cpu")
    if options.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds: wanted {LEAST_ROUNDS} or more, got {options.rounds}")
    return options


def command_of(options: argparse.Namespace) -> list[str]:
    """The arguments that decide what is measured."""
    return [
        *("--device", options.device, "--op", *options.op, "--size", *options.size),
        *("--dtype", *options.dtype, "--rounds", str(options.rounds)),
        *("--threads", str(options.threads)),
    ]


def empty_report(options: argparse.Namespace, device: Device | None) -> Report:
    built = build_info()
    package = f"{atlas_ext.__version__} ({revision.commit()}, {built['cpu_isa']})"
    return {
        "device": options.device,
        "ops": list(options.op),
        "command": command_of(options),
        "date": datetime.now().isoformat(timespec="minutes", sep=" "),
        "machine": (device or Cpu()).describe(),
        "versions": {
            "atlas_ext": package,
            "g++": built["compiler"],
            "Python": platform.python_version(),
            **packages.versions(),
        },
        "ceilings": device.ceilings(options.dtype) if device else {},
        "gates": [],
        "refused": [],
        "missing": [],
        "runs": [],
        "finished": False,
    }


class Run:
    """Goes through the cases and fills the report."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device: Device | None = {"cpu": Cpu, "cuda": Cuda}.get(options.device, lambda: None)()
        self.report = empty_report(options, self.device)
        self._gates: dict[tuple[str, Setting], Outcome | str] = {}

    def gate(self, op: str, setting: Setting) -> str:
        """Why nothing of `op` is timed; "": it may be. Says so once."""
        if (op, setting) not in self._gates:
            outcome = setting.missing(op) or run_registry(op, setting)
            self._gates[op, setting] = outcome
            if isinstance(outcome, str):
                missing = {"op": op, "dtype": setting.dtype, "reason": outcome}
                self.report["missing"].append(missing)
            else:
                self.report["gates"].append(asdict(outcome))
            print(outcome, flush=True)
        outcome = self._gates[op, setting]
        return outcome if isinstance(outcome, str) else str(outcome) * bool(outcome.failed)

    def take(self, case: Case, setting: Setting) -> None:
        if any(self.gate(op, setting) for op in case.gates):
            return
        try:
            reason = require_right(case, setting)
            print(f"{case.name}, {setting.dtype}: {reason or 'right'}", flush=True)
            if not reason:
                self.time(case, setting)
        except Exception as error:  # the other cases go on
            reason = failure(error)
            print(f"{case.name}, {setting.dtype}: {reason}", flush=True)
        if reason:
            refused = {"op": case.op, "case": case.name, "dtype": setting.dtype, "reason": reason}
            self.report["refused"].append(refused)
        self.keep()

    def time(self, case: Case, setting: Setting) -> None:
        if self.device is None:
            return
        rounds, bounds = self.options.rounds, self.report["ceilings"]
        for direction in case.directions:
            found = measure(case, direction, setting, self.device, rounds, bounds)
            self.report["runs"].append(found)

    def keep(self) -> None:
        """After every case, so that a run that is cut short leaves what it has."""
        if self.options.page:
            page.keep(self.report, self.options.page.with_suffix(""))
        if self.options.json:
            self.options.json.parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(self.report, indent=1, ensure_ascii=False)
            self.options.json.write_text(text + "\n")

    def everything(self) -> Report:
        for dtype in self.options.dtype:
            setting = Setting(self.options.device, dtype)
            for case in cases.cases(setting.device, self.options.op, self.options.size):
                if case.dtypes is None or dtype in case.dtypes:
                    self.take(case, setting)
        self.report["finished"] = True
        self.keep()
        return self.report


def wrong(report: Report) -> bool:
    return bool(report["refused"]) or any(gate["failed"] for gate in report["gates"])


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    reason = unavailable(options.device)
    if reason is not None:
        print(f"bench: {reason}", file=sys.stderr)
        return 1
    torch.set_num_threads(options.threads)
    found = Run(options).everything()
    text = report.tables(found)
    if options.base:
        then = revision.measure(options.base, found["command"])
        text += f"\n\nAgainst {options.base}:\n\n{report.comparison(found, then)}"
    print(f"\n{text}\n")
    if options.plot:
        plots.plot(found, options.plot)
    if options.page:
        page.write(options.page)
    return int(wrong(found))


if __name__ == "__main__":
    raise SystemExit(main())
