"""No speed of wrong results: an operator's cases in the tests' registry come before its timing."""

from __future__ import annotations

from dataclasses import dataclass

from atlas_ext import testing
from bench.setting import Setting


@dataclass(frozen=True)
class Outcome:
    """What the registry says of one operator in one setting."""

    op: str
    dtype: str
    cases: int
    failed: tuple[str, ...]  # "case: what was wrong"

    def __str__(self) -> str:
        if not self.failed:
            return f"{self.op}, {self.dtype}: {self.cases} cases right"
        return f"{self.op}, {self.dtype}: {len(self.failed)} of {self.cases} cases wrong"


def run_registry(op: str, setting: Setting) -> Outcome:
    """Runs every case of `op` in `atlas_ext.testing` against the float64 reference."""
    found = testing.cases(op)
    messages = ((case.name, _wrong(case, setting)) for case in found)
    failed = tuple(f"{name}: {message}" for name, message in messages if message)
    return Outcome(op, setting.dtype, len(found), failed)


def _wrong(case: testing.Case, setting: Setting) -> str:
    """Outputs and gradients beyond the tolerance, or the error that was raised; "" if right."""
    try:
        errors = case_errors(case, setting)
    except Exception as error:  # a crash of any kind is a reason not to time the operator
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    limit = setting.tolerance(case)
    wrong = [f"{name} {error:.1e}" for name, error in errors.items() if not error <= limit]
    return f"relative errors over {limit:.0e}: {', '.join(wrong)}" if wrong else ""


def case_errors(case: testing.Case, setting: Setting) -> dict[str, float]:
    """Relative errors of all outputs, and of all gradients where the operator has them."""
    rounded = case.inputs(setting.torch_dtype, setting.torch_device)
    names = case.differentiable(rounded)
    with setting.active():
        inputs = testing.require_grad(rounded, names)
        outputs = case.run(inputs)
        grads = testing.cotangents(outputs)
        actual = testing.gradients(outputs, inputs, names, grads)
    wide = testing.require_grad(testing.wide_inputs(rounded), names)
    expected = case.run_reference(wide)
    wanted = testing.gradients(
        expected, wide, names, {name: grad.double() for name, grad in grads.items()}
    )
    if outputs.keys() != expected.keys():
        raise ValueError(f"outputs: wanted {sorted(expected)}, got {sorted(outputs)}")
    return {
        **{name: testing.relative_error(outputs[name], expected[name]) for name in expected},
        **{f"grad {n}": testing.relative_error(actual[n], wanted[n]) for n in names},
    }
