"""Peak memory of one call, in a fresh process: `python -m bench.memory CASE OPERATOR DIRECTION`.

Resident memory above what inputs and library code hold already: VmHWM of /proc/self/status after
a reset, so that scratch of any allocator counts. A call on a short input comes first, for buffers
that are made once in a process.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import torch

from bench.cases import CASES
from bench.cases.base import SHORT, Case

OURS = "ours"


def peak_mib(case: Case, operator: str, direction: str, threads: int) -> float | None:
    """Runs this file for `case` and the rival named `operator`, or OURS; None if that fails."""
    names = [case.name, operator, direction, str(threads)]
    command = [sys.executable, "-m", "bench.memory", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return None if done.returncode else float(done.stdout)


def resident_kib(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"bench.memory: /proc/self/status: wanted a line {field}, got none")
    return int(found[1])


def main(case_name: str, operator_name: str, direction: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    case = next(case for case in CASES if case.name == case_name)
    rival = next((rival for rival in case.rivals if rival.name == operator_name), None)
    case.call(rival, direction, SHORT)()
    call = case.call(rival, direction)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_kib("VmRSS")
    call()
    print((resident_kib("VmHWM") - before) / 1024)


if __name__ == "__main__":
    main(*sys.argv[1:])
