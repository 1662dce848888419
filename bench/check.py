"""Nothing is timed that is not right: each case meets the reference before its first round."""

from __future__ import annotations

from bench.cases.base import Case


def require_correct(case: Case) -> dict[str, float]:
    """The errors found; raises AssertionError where one is beyond the case's tolerance."""
    errors = case.errors()
    wrong = {name: error for name, error in errors.items() if not error <= case.tolerance}
    assert not wrong, f"{case.name}: not timed: relative errors above {case.tolerance}: {wrong}"
    return errors
