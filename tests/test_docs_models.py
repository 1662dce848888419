"""docs/models.md: its Python runs, in order, and the tests that its table names exist."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest

from atlas_ext.models.config import VARIANTS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "models.md").read_text()
BLOCKS = re.findall(r"^( *)```python\n(.*?)^\1```", PAGE, re.DOTALL | re.MULTILINE)
NAMED_TESTS = re.findall(r"`(test_\w+\.py)::(test_\w+)`", PAGE)


def test_the_page_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    assert len(BLOCKS) >= 6
    for index, (_, block) in enumerate(BLOCKS):
        code = compile(textwrap.dedent(block), f"docs/models.md, block {index}", "exec")
        exec(code, namespace)
    assert len(namespace["streamed"]) == 5
    assert namespace["first_try"].shape == (2, 8)


@pytest.mark.parametrize(("file", "name"), sorted(set(NAMED_TESTS)))
def test_the_tests_that_the_page_names_exist(file: str, name: str) -> None:
    assert f"\ndef {name}(" in (ROOT / "tests" / file).read_text()


def test_every_variant_has_its_rule_and_its_test() -> None:
    lines = PAGE.split("## Rules and what they reduce to")[1].splitlines()
    rows = [line for line in lines if line.startswith("| `") and "::test_" in line]
    assert {re.match(r"\| `([\w+]+)`", row)[1] for row in rows} == set(VARIANTS)
