"""What the CUDA kernels' machine code tells: registers, shared memory, occupancy, spills,
instructions. The table is docs/cuda_kernels.md. ::

    python tests/static_gates.py            # compile and compare with the table
    python tests/static_gates.py --write    # compile and write the table

Needs nvcc; the emulated library, which says what launches ask for (`make emulate`); and nvdisasm
(package nvidia-cuda-nvdisasm) for the check of instructions, which is left out without it.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cuda_instances import GROUPS, launches, record, short_name

from atlas_ext.__main__ import OmegaSizes, plan_source

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "cuda_kernels.md"
ARCHITECTURES = (75, 80, 90)
FLAGS = ("-std=c++17", "-O3", f"-I{ROOT / 'csrc'}")
HEADER = """# Resources of the CUDA kernels

Written by `python tests/static_gates.py --write` with nvcc {nvcc}; `.ci/run static_gates` compares.

* Three numbers are those of sm_75, sm_80 and sm_90. An instance that a device cannot run, for lack
  of tensor cores or of shared memory, is empty there: `–`.
* Registers are a budget: more of them, or any spill, fails, in the functions that a kernel calls,
  too. Stack is what local arrays with computed indices take.
* Threads and dynamic shared memory are those of a typical launch: the largest of the calls in
  `tests/cuda_instances.py`, which together launch every instance that a launcher can choose.
* Blocks per multiprocessor at that launch are from the toolkit's `cuda_occupancy.h`; `–` stands
  where the launch does not fit.

| kernel | registers | stack | static shared | threads | dynamic shared | blocks per SM |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Usage:
    """What ptxas says of one kernel for one architecture."""

    registers: int
    stack: int
    shared: int
    spilled: int


@dataclass(frozen=True)
class Row:
    name: str
    registers: tuple[int, ...]  # 0: empty there
    stack: tuple[int, ...]
    shared: tuple[int, ...]
    threads: int
    dynamic: int
    blocks: tuple[int, ...]

    def line(self) -> str:
        def three(values: tuple[int, ...]) -> str:
            return " / ".join(str(value) if value > 0 else "–" for value in values)

        return (
            f"| `{self.name}` | {three(self.registers)} | {max(self.stack)} | {max(self.shared)} | "
            f"{self.threads or '–'} | {self.dynamic if self.threads else '–'} | "
            f"{three(self.blocks)} |"
        )


def nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        print("NOT RUN: no nvcc on PATH")
        sys.exit(77)
    return found


def nvcc_version() -> str:
    text = subprocess.run([nvcc(), "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"V(\d+\.\d+)", text)[0]


def sources() -> list[Path]:
    return sorted((ROOT / "csrc/kernels/cuda").glob("*.cu"))


def compile_one(source: Path, architecture: int, folder: Path) -> dict[str, Usage]:
    """The cubin goes to `folder`."""
    command = [nvcc(), *FLAGS, f"-arch=sm_{architecture}", "-Xptxas", "-v", "-cubin", str(source)]
    target = folder / f"{source.stem}.{architecture}.cubin"
    done = subprocess.run([*command, "-o", str(target)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return {name: usage for name, usage in usages(done.stderr) if "probe_kernel" not in name}


def usages(text: str) -> Iterator[tuple[str, Usage]]:
    """From ptxas -v: a kernel's lines are followed by those of the functions that it calls."""
    for part in text.split("Compiling entry function '")[1:]:
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", part)
        used = re.findall(r"Used (\d+) registers", part)
        stack = re.findall(r"(\d+) bytes cumulative stack size", part)
        shared = re.findall(r"(\d+) bytes smem", part)
        (registers,), spilled = map(int, used), sum(int(a) + int(b) for a, b in spills)
        found = Usage(registers, int((stack or [0])[0]), int((shared or [0])[0]), spilled)
        yield part[: part.index("'")], found


def compile_ptx(source: Path, folder: Path) -> None:
    """For devices to come."""
    target = folder / f"{source.stem}.ptx"
    command = [nvcc(), *FLAGS, "-arch=compute_90", "-ptx", str(source), "-o", str(target)]
    subprocess.run(command, check=True)


def compile_all(folder: Path) -> dict[int, dict[str, Usage]]:
    jobs = [(source, arch) for arch in ARCHITECTURES for source in sources()]
    with ThreadPoolExecutor(2) as pool:
        forward = [pool.submit(compile_ptx, source, folder) for source in sources()]
        found = list(pool.map(lambda job: compile_one(*job, folder), jobs))
        for future in forward:
            future.result()
    result: dict[int, dict[str, Usage]] = {arch: {} for arch in ARCHITECTURES}
    for (_, arch), usages in zip(jobs, found, strict=True):
        result[arch] |= usages
    return result


def typical_launches(folder: Path) -> dict[str, tuple[int, int]]:
    """Threads and dynamic shared bytes by kernel: the largest of the calls of every instance."""
    result: dict[str, tuple[int, int]] = {}
    for group in GROUPS:
        record(folder / group, group)
        for launch in launches(folder / group):
            asked = (int(launch["block"][0]), int(launch["dynamic_shared"]))
            result[launch["kernel"]] = max(asked, result.get(launch["kernel"], asked))
    return result


def occupancies(queries: list[tuple[int, int, int, int, int]], folder: Path) -> list[int]:
    """Blocks per multiprocessor of (capability, registers, static, dynamic, threads)."""
    dry_run = subprocess.run([nvcc(), "--dryrun", "-E", "x.cu"], capture_output=True, text=True)
    toolkit = re.findall(r"TOP=(\S+)", dry_run.stderr)[0]
    program = folder / "occupancy"
    source = ROOT / "tests" / "occupancy.cpp"
    flags = ["-std=c++17", "-isystem", f"{toolkit}/include"]
    subprocess.run(["g++", *flags, str(source), "-o", str(program)], check=True)
    lines = "".join(" ".join(map(str, query)) + "\n" for query in queries)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


def is_empty(name: str, arch: int) -> bool:
    """Instances whose body is left out of an architecture's code."""
    tensor_cores = "Tf32Tile" in name or "HalfTile<bf16>" in name or "tf32" in name
    too_large = name.startswith("newton_schulz_backward_kernel<") and " 128," in name
    return arch < 80 and (tensor_cores or too_large)


def rows(usage: dict[int, dict[str, Usage]], folder: Path) -> list[Row]:
    asked = typical_launches(folder)
    names = {short_name(name): name for name in usage[ARCHITECTURES[0]]}
    table, queries = [], []
    for short, name in names.items():
        threads, dynamic = asked.get(name, (0, 0))
        each = [usage[arch][name] for arch in ARCHITECTURES]
        table.append((short, each, threads, dynamic))
        queries += [
            (arch, one.registers, one.shared, dynamic, threads or 1024)
            for arch, one in zip(ARCHITECTURES, each, strict=True)
        ]
    blocks = occupancies(queries, folder)
    result = []
    for i, (short, each, threads, dynamic) in enumerate(table):
        empty = [is_empty(short, arch) for arch in ARCHITECTURES]
        registers = (0 if e else one.registers for e, one in zip(empty, each, strict=True))
        found = blocks[3 * i : 3 * i + 3] if threads else [0] * 3
        fits = (0 if e else b for e, b in zip(empty, found, strict=True))
        stack, shared = zip(*((one.stack, one.shared) for one in each), strict=True)
        result.append(Row(short, tuple(registers), stack, shared, threads, dynamic, tuple(fits)))
    return sorted(result, key=lambda row: numbers_as_such(row.name))


def two_heads(usage: dict[int, dict[str, Usage]], folder: Path) -> list[str]:
    """Blocks that launchers plan two to a multiprocessor do not fit there: none should."""
    source = plan_source(with_cuda=False)
    assert source is not None, "no emulated library"
    queries, names = [], []
    for arch in (*ARCHITECTURES, 86):  # where there is least; it runs sm_80's code
        for op in ("omega_rule", "omega_rule_backward"):
            text = source[1](op, "bfloat16", OmegaSizes(16, 16, F=64, matrices=2), False, arch)
            found = re.search(r"2 heads a multiprocessor, (\d+) threads, ([\d.]+) KiB", text)
            assert found, text
            threads, dynamic = int(found[1]), int(1024 * float(found[2]))
            kernel = f"omega_{'backward' if op.endswith('backward') else 'forward'}_kernel<"
            for name, one in usage[80 if arch == 86 else arch].items():
                short = short_name(name)
                if short.startswith(kernel) and not is_empty(short, arch):
                    queries.append((arch, one.registers, one.shared, dynamic, threads))
                    names.append(f"{short}: sm_{arch}")
    assert len(names) == 4 * 7, names  # simple everywhere, on tensor cores but on sm_75
    found_blocks = zip(names, occupancies(queries, folder), strict=True)
    return [f"{name}: blocks per SM: wanted 2, got {got}" for name, got in found_blocks if got != 2]


def numbers_as_such(text: str) -> list[str | int]:
    return [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", text)]


def written_rows() -> dict[str, list[str]]:
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name.strip("`"): rest for name, *rest in cells}


def compare(table: list[Row]) -> list[str]:
    """What differs from the written table: more registers, or anything else at all."""
    written, wrong = written_rows(), []
    for row in table:
        if row.name not in written:
            wrong.append(f"{row.name}: not in the table")
            continue
        budget = written.pop(row.name)
        now = [cell.strip() for cell in row.line().strip("|").split("|")][1:]
        allowed = [int(n) if n.isdigit() else 0 for n in budget[0].split(" / ")]
        if any(a < n for a, n in zip(allowed, row.registers, strict=True)):
            wrong.append(f"{row.name}: registers: wanted at most {budget[0]}, got {now[0]}")
        if budget[1:5] != now[1:5]:
            wrong.append(f"{row.name}: launch: wanted {budget[1:5]}, got {now[1:5]}")
        if budget[5] != now[5] and budget[0] == now[0]:
            wrong.append(f"{row.name}: blocks per SM: wanted {budget[5]}, got {now[5]}")
    return wrong + [f"{name}: in the table, not compiled" for name in written]


def nvdisasm() -> str | None:
    found = shutil.which("nvdisasm")
    spec = importlib.util.find_spec("nvidia") if found is None else None
    for base in spec.submodule_search_locations or () if spec else ():
        found = next(map(str, Path(base).glob("*/bin/nvdisasm")), found)
    return found


def wanted_instructions(name: str) -> set[str]:
    """Of sm_80, by kernel: tensor cores where an instance has them; ldmatrix where it holds 16
    bits; cp.async where elements go in as they are. The Omega rule converts what it loads."""
    if name.startswith(("omega_", "exp_omega_")):
        return {"HMMA"} if "tf32" in name else set()
    if not name.startswith("newton_schulz_"):
        return set()
    wanted = set()
    if "Tf32Tile" in name or "HalfTile" in name:
        wanted.add("HMMA")
    if "HalfTile" in name:
        wanted.add("LDSM")
    element = re.search(r"<(?:HalfTile<(\w+)>|\w+), \d+, (\w+)>", name)
    if element and (element[1] or "float") == element[2]:
        wanted.add("LDGSTS")
    return wanted


def check_instructions(tool: str, cubins: list[Path]) -> tuple[int, list[str]]:
    checked, wrong = 0, []
    for cubin in cubins:
        text = subprocess.run([tool, cubin], capture_output=True, text=True, check=True).stdout
        # Functions that a kernel calls stand in its own section.
        for section in re.split(r"\n\s*\.section\s+\.text\.", text)[1:]:
            name = short_name(re.match(r"\w+", section)[0])  # type: ignore[index]
            if not (wanted := wanted_instructions(name)):
                continue
            checked += 1
            missing = {word for word in wanted if not re.search(rf"\b{word}\b", section)}
            if missing:
                wrong.append(f"{name}: sm_80 code without {', '.join(sorted(missing))}")
    return checked, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description="static checks of the CUDA kernels")
    parser.add_argument("--write", action="store_true", help="write docs/cuda_kernels.md")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        usage = compile_all(folder)
        table = rows(usage, folder)
        if write:
            lines = "\n".join(row.line() for row in table)
            TABLE.write_text(HEADER.format(nvcc=nvcc_version()) + lines + "\n")
        wrong = compare(table) + two_heads(usage, folder)
        wrong += [
            f"{short_name(kernel)}: sm_{arch}: {one.spilled} bytes of spills"
            for arch, all_ in usage.items()
            for kernel, one in all_.items()
            if one.spilled
        ]
        unlaunched = {row.name for row in table if not row.threads}
        if unlaunched:
            wrong.append(f"never launched: {unlaunched}")
        tool, instructions = nvdisasm(), "instructions NOT CHECKED: no nvdisasm"
        if tool is not None:
            count, more = check_instructions(tool, sorted(folder.glob("*.80.cubin")))
            wrong += more
            if count != (wanted := sum(bool(wanted_instructions(row.name)) for row in table)):
                wrong.append(
                    f"instructions: wanted {wanted} kernels in nvdisasm's text, got {count}"
                )
            instructions = f"{count} of them with HMMA, LDSM, LDGSTS as they should"
    most = {arch: max(one.registers for one in usage[arch].values()) for arch in ARCHITECTURES}
    print(f"{len(table)} instances, sm_75 sm_80 sm_90 and compute_90 PTX; {instructions}")
    print(f"most registers: {', '.join(f'sm_{arch} {n}' for arch, n in most.items())}")
    print("\n".join(wrong) or "no spills; as docs/cuda_kernels.md has it")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
