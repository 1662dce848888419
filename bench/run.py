"""`python -m bench.run`: times every operator against careful eager PyTorch, in one table.

pytest-benchmark does the timing (bench_ops.py) and stores the JSON; table and plot are written
beside it. The exit status says whether all results were right, not whether they were fast.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import cuda, report
from bench.report import Report

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ("atlas_ext", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.run", description=__doc__.split("\n")[0])
    parser.add_argument("--case", default="", help="only cases whose name contains these words")
    parser.add_argument("--quick", action="store_true", help="5 rounds, no peak memory, no verdict")
    parser.add_argument("--json", type=Path, default=ROOT / "bench-results" / "bench.json")
    parser.add_argument("--compare", metavar="REV|JSON", help="a git revision, or an earlier JSON")
    parser.add_argument(
        "--device", choices=("cpu", "cuda", "emulated"), default="cpu",
        help="cuda: the CUDA kernels on this machine's GPU; emulated: they are checked, not timed",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=21, help="a verdict needs at least 15")
    return parser.parse_args(arguments)


def measure(folder: Path, output: Path, options: argparse.Namespace) -> int:
    """Runs bench_ops.py on the package in `folder`; returns pytest's exit status."""
    command = [
        *(
            sys.executable,
            "-m",
            "pytest",
            "bench/bench_ops.py",
            "-q",
            "-s",
            "-p",
            "no:cacheprovider",
        ),
        *("--benchmark-only", "--benchmark-quiet", f"--benchmark-json={output}"),
        *(f"--bench-threads={options.threads}", f"--bench-case={options.case}"),
        f"--bench-rounds={5 if options.quick else options.rounds}",
    ]
    if not options.quick:
        command.append("--bench-memory")
    return subprocess.run(command, cwd=folder, check=False).returncode


def measure_revision(revision: str, output: Path, options: argparse.Namespace) -> Report:
    """Builds `revision` in a folder of its own and gives it to today's benchmark."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kept = subprocess.run(
            ["git", "ls-tree", "--name-only", revision, *PACKAGE],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.split()  # fmt: skip
        archive = ["git", "archive", "--output", str(folder / "package.tar"), revision, *kept]
        subprocess.run(archive, cwd=ROOT, check=True)
        shutil.unpack_archive(folder / "package.tar", folder)
        shutil.copytree(ROOT / "bench", folder / "bench")
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=folder, check=True)
        measure(folder, output, options)
    return read(output)


def read(path: Path) -> Report:
    loaded: Report = json.loads(path.read_text())
    return loaded


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    output = options.json.resolve()
    if options.device != "cpu":
        rounds = 5 if options.quick else options.rounds
        return cuda.run(options.device, options.case, rounds, output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    status = measure(ROOT, output, options)
    if not output.exists():
        print("bench: nothing was measured", file=sys.stderr)
        return status or 1
    now = read(output)
    text = "\n".join([*report.machine_lines(now), "", report.table(now)])
    if options.compare:
        earlier = Path(options.compare)
        then = (
            read(earlier)
            if earlier.is_file()
            else measure_revision(options.compare, output.with_suffix(".then.json"), options)
        )
        text += f"\n\nAgainst {options.compare}:\n\n{report.comparison(now, then)}"
    print(f"\n{text}\n")
    output.with_suffix(".md").write_text(text + "\n")
    report.plot(now, output.with_suffix(".png"))
    print(f"wrote {output}, its table (.md) and its plot (.png)")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
