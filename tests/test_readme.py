"""Python blocks of the README run as they stand, and links of all pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
README_BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGES[0].read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("index", range(len(README_BLOCKS)))
def test_readme_block_runs(index: int) -> None:
    exec(compile(README_BLOCKS[index], f"README.md, block {index}", "exec"), {})


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
