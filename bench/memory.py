"""Resident memory of this process, and how far one call raises it."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from bench.timing import Call


def peak_mib(call: Call) -> float:
    """VmHWM of /proc/self/status after a reset, so that scratch of any allocator counts.

    A call comes first, for buffers that are made once in a process; then the allocator gives back
    what it only keeps.
    """
    call()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident_kib("VmRSS")
    call()
    return (resident_kib("VmHWM") - before) / 1024


def resident_kib(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    if found is None:
        raise RuntimeError(f"bench.memory: /proc/self/status: wanted a line {field}, got none")
    return int(found[1])
