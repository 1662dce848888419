"""The package's outside: metadata, the loader's advice, `python -m atlas_ext`, the ABI in use."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import atlas_ext
from atlas_ext import _load

ROOT = Path(__file__).resolve().parents[1]


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


def test_one_version_everywhere() -> None:
    from importlib.metadata import version

    assert atlas_ext.__version__ == version("atlas_ext")


def test_torch_is_no_build_requirement() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"^requires = \[(.*)\]", text, re.MULTILINE)
    assert requires and "torch" not in requires[1]


def test_info_names_versions_and_kernels() -> None:
    result = run_python("-m", "atlas_ext")
    assert result.returncode == 0, result.stderr
    assert f"torch     {torch.__version__}" in result.stdout
    for line in ("built for CPU: baseline", "built for CUDA:", "CPU: ", "  poly_features "):
        assert line in result.stdout


def test_instruction_set_is_chosen_by_the_environment() -> None:
    code = "import atlas_ext, torch; print(torch.ops.atlas_ext.build_info())"
    result = run_python("-c", code, ATLAS_EXT_CPU_ISA="baseline")
    assert "cpu_isa=baseline" in result.stdout, result.stderr
    result = run_python("-c", code, ATLAS_EXT_CPU_ISA="mmx")
    assert "wanted baseline, avx2 or avx512, got mmx" in result.stderr


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("No module named 'atlas_ext._C'", "pip install --no-build-isolation -e ."),
        ("libcudart.so.13: cannot open shared object file", "was built for CUDA 13 and wanted"),
        ("undefined symbol: aoti_torch_get_current_cuda_stream", "was built for CUDA and wanted"),
        ("undefined symbol: aoti_torch_library_def", "does not load under torch"),
    ],
)
def test_loader_says_what_to_do(error: str, advice: str) -> None:
    text = _load.explain(error)
    assert text.startswith("atlas_ext: ") and advice in text
    assert "\n" not in text


def test_library_uses_the_limited_and_the_stable_abi() -> None:
    (library,) = (Path(atlas_ext.__path__[0])).glob("_C*.so")
    assert library.name == "_C.abi3.so"
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True)
    assert "libtorch_python" not in needed.stdout
    symbols = subprocess.run(
        ["nm", "-DC", "--undefined-only", library], capture_output=True, text=True, check=True
    ).stdout
    unstable = [line for line in symbols.splitlines() if re.search(r"\bU (at|c10|torch)::", line)]
    assert not unstable, unstable
