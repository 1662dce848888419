"""Python blocks of the README and of the pages for users run as they stand, and links of all pages
lead somewhere."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = [
    ROOT / "docs" / f"{name}.md"
    for name in (
        *("use_an_op", "build_a_model", "train", "serve", "inspect", "extend", "transformers"),
    )
]


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


README_BLOCKS = python_blocks(PAGES[0])


@pytest.mark.parametrize("index", range(len(README_BLOCKS)))
def test_readme_block_runs(index: int) -> None:
    exec(compile(README_BLOCKS[index], f"README.md, block {index}", "exec"), {})


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_blocks_of_a_guide_run_one_after_the_other(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": page.stem}
    left_out = 0
    for index, block in enumerate(python_blocks(page)):
        if "transformers" in block and find_spec("transformers") is None:
            left_out += 1
            continue
        exec(compile(block, f"{page.name}, block {index}", "exec"), names)
    if left_out:
        pytest.skip(f"{left_out} blocks need transformers: pip install 'atlas_ext[hf]'")


def test_readme_shows_every_operator() -> None:
    import atlas_ext

    shown = "\n".join(README_BLOCKS)
    functions = [name for name in atlas_ext.__all__ if name[0].islower() and name[0] != "_"]
    assert not [name for name in functions if f"atlas_ext.{name}(" not in shown]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    local = [target for target in targets if "://" not in target]
    assert not [target for target in local if not (page.parent / target).exists()]
