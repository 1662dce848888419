"""The cases of the benchmark: shapes, rivals, targets, counts of work."""

from bench.cases import exp_rule, layer, model, rule, small, update
from bench.cases.base import Case

CASES: tuple[Case, ...] = (
    *small.CASES,
    *rule.CASES,
    *update.CASES,
    *exp_rule.CASES,
    *model.CASES,
    *layer.CASES,
)


def find(pattern: str) -> list[Case]:
    """Cases whose name contains all words of `pattern`."""
    words = pattern.lower().split()
    return [case for case in CASES if all(word in case.name.lower() for word in words)]
