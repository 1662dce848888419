"""Who may include or import what: the dependency table of the architecture, enforced."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "atlas_ext"
CSRC = ROOT / "csrc"

# Within atlas_ext: unit -> the other units it may import; state.py holds plain data types.
PYTHON_RULES = {
    "state": set(),
    "reference": {"state"},
    "ops": {"state", "_load"},
    "layers": {"ops", "state"},
    "models": {"layers", "state"},
    "hf": {"models"},
    "inspect": {"hf", "layers", "models", "ops", "state"},  # a tool: looks into every layer
    "testing": {"_case", "_exp_omega_cases", "ops", "reference", "state"},
    "_case": {"ops", "reference", "state"},
    "_exp_omega_cases": {"_case", "state"},
    "_version": set(),
    "_load": {"_C"},
}
# Third-party modules that only some units may import; torch and the standard library are free.
FREE_MODULES = {"torch", "numpy"}
OPTIONAL_MODULES = {
    "hf": {"transformers"},
    "inspect": {"matplotlib", "safetensors", "transformers"},
    "models": {"safetensors"},
}
# Operators are called through atlas_ext.ops; only these see torch.ops.
MAY_SEE_TORCH_OPS = {"ops", "_load", "__main__"}

CXX_RULES = {
    "kernels/cpu": {"allow": r"kernels/cpu/|torch/headeronly/", "deny": r"omp\.h|ATen|c10|cuda"},
    "kernels/cuda/emulation": {  # the only part that talks to the system
        "allow": r"kernels/cuda/|cxxabi\.h|dlfcn\.h|pthread\.h|sys/|ucontext\.h|unistd\.h",
        "deny": r"torch|ATen|c10|kernels/cpu|cuda_runtime",
    },
    "kernels/cuda": {
        "allow": r"kernels/cuda/|torch/headeronly/|cuda|mma\.h|cooperative_groups",
        "deny": r"cublas|cusparse|torch/csrc|ATen|c10|kernels/cpu",
    },
    "ops": {
        "allow": r"ops/|kernels/|torch/csrc/stable/|torch/headeronly/"
        r"|torch/csrc/inductor/aoti_torch/c/shim|cuda_runtime|sys/mman",
        "deny": r"ATen|c10/|pybind|torch/extension|torch/library\.h",
    },
}


def unit_of(path: Path) -> str:
    """The row of the table that a Python file belongs to: its folder, or its own name."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute dotted names of everything a file imports, also inside functions."""
    package = ["atlas_ext", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            for alias in node.names:
                yield ".".join([*base, alias.name])


def python_files() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if "__pycache__" not in path.parts)


def cxx_files() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"})


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_python_imports(path: Path) -> None:
    unit = unit_of(path)
    if unit in {"__init__", "__main__"}:  # the public face imports what it exports
        return
    assert unit in PYTHON_RULES, f"{path}: a new unit; give it a row in PYTHON_RULES"
    rules = PYTHON_RULES[unit]
    free = FREE_MODULES | OPTIONAL_MODULES.get(unit, set())
    for module in imported_modules(path):
        top, *rest = module.split(".")
        if top == "atlas_ext":
            assert rest, f"{path}: imports the whole package; name the module"
            # `from atlas_ext import omega_rule` is the public name of an operator.
            known = (PACKAGE / rest[0]).is_dir() or (PACKAGE / f"{rest[0]}.py").exists()
            target = rest[0] if known or rest[0] == "_C" else "ops"
            assert target == unit or target in rules, f"{unit} may not import {module}"
        else:
            assert top in free | sys.stdlib_module_names, f"{unit} may not import {module}"


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_torch_ops_are_called_by_the_operators_alone(path: Path) -> None:
    if unit_of(path) in MAY_SEE_TORCH_OPS:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        is_torch_ops = (
            isinstance(node, ast.Attribute)
            and node.attr == "ops"
            and isinstance(node.value, ast.Name)
            and node.value.id == "torch"
        )
        assert not is_torch_ops, f"{path}:{node.lineno} uses torch.ops"


@pytest.mark.parametrize("path", cxx_files(), ids=lambda p: str(p.relative_to(CSRC)))
def test_cxx_includes(path: Path) -> None:
    folder = path.relative_to(CSRC).parent.as_posix()
    text = path.read_text()
    if folder == ".":
        return
    rules = next(rule for name, rule in CXX_RULES.items() if folder.startswith(name))
    for bracket, header in re.findall(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]', text, re.MULTILINE):
        standard = bracket == "<" and "/" not in header and "." not in header
        allowed = standard or re.match(rules["allow"], header)
        assert allowed, f"{path}: may not include {header}"
        assert not re.search(rules["deny"], header), f"{path}: may not include {header}"


def test_operators_leave_launches_to_the_kernels() -> None:
    for path in (CSRC / "ops").glob("*"):
        assert "<<<" not in path.read_text(), f"{path}: launches a kernel itself"


def test_objects_do_not_overwrite_each_other() -> None:
    stems: dict[Path, Path] = {}
    for path in cxx_files():
        if path.suffix in {".cpp", ".cu"}:
            other = stems.setdefault(path.with_suffix(""), path)
            assert other == path, f"{other} and {path} both become {path.stem}.o"


def test_setup_stays_short() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) < 80
