"""The cases of the benchmark: what is called, at which lengths, beside which rivals."""

from __future__ import annotations

from collections.abc import Sequence

from bench.cases import exp_rule, layer, model, rule, small, update
from bench.cases.base import Case

MODULES = (small, rule, exp_rule, layer, update, model)
OPS = (
    "newton_schulz",
    "poly_features",
    "omega_rule",
    "omega_rule_update",
    "exp_omega_rule",
    "exp_omega_rule_update",
)


def cases(device: str, ops: Sequence[str], sizes: Sequence[str]) -> list[Case]:
    """All cases on `device` of these operators and sizes, in the order of `OPS`."""
    found = [case for module in MODULES for case in module.cases(device)]
    chosen = [case for case in found if case.op in ops and case.size in sizes]
    return sorted(chosen, key=lambda case: OPS.index(case.op))
