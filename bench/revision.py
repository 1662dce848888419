"""An earlier revision of the package, built in a folder of its own and given to today's bench."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.report import Report

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ("atlas_ext", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE")


def measure(revision: str, arguments: Sequence[str]) -> Report:
    """The report of `python -m bench.run <arguments>` there."""
    with tempfile.TemporaryDirectory() as name:
        folder, output = Path(name), Path(name, "then.json")
        kept = _git("ls-tree", "--name-only", revision, *PACKAGE).split()
        _git("archive", "--output", str(folder / "package.tar"), revision, *kept)
        shutil.unpack_archive(folder / "package.tar", folder)
        shutil.copytree(ROOT / "bench", folder / "bench")
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        subprocess.run(build, cwd=folder, check=True)
        command = [sys.executable, "-m", "bench.run", *arguments, "--json", str(output)]
        # a revision whose results are wrong still has a report
        subprocess.run(command, cwd=folder, check=False)
        report: Report = json.loads(output.read_text())
    return report


def commit() -> str:
    """Of this tree, and whether it was changed since; "unknown" outside of a repository."""
    try:
        modified = _git("status", "--porcelain", "--", *PACKAGE, "bench")
        return _git("rev-parse", "--short=9", "HEAD").strip() + (", modified" if modified else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True)
    return done.stdout
