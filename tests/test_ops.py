"""What every operator must hold, over the registry of cases: values, gradients, and their modes."""

from __future__ import annotations

import functools
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from atlas_ext.testing import (
    CASES,
    DTYPES,
    Case,
    cases,
    cotangents,
    gradients,
    map_tensors,
    named_tensors,
    relative_error,
    require_grad,
    wide_inputs,
)

POSITION = "final_state.position"  # the one output that is no floating-point tensor
DIFFERENTIABLE = [case for case in CASES if not case.in_place]
THOROUGH = cases(thorough=True)

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
each_differentiable = pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.id)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])


@functools.cache
def expected(case: Case, dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients of the fp64 reference on the inputs rounded to ``dtype``."""
    rounded = case.inputs(dtype)
    names = case.differentiable(rounded)
    inputs = require_grad(wide_inputs(rounded), names)
    outputs = case.run_reference(inputs)
    if not names:
        return outputs, {}
    # The reference sees the cotangents that the operator gets: rounded to the dtype of each output.
    shapes = {
        name: output.detach().to(_output_dtype(name, dtype)) for name, output in outputs.items()
    }
    grads = {name: grad.double() for name, grad in cotangents(shapes).items()}
    return outputs, gradients(outputs, inputs, names, grads)


def _output_dtype(name: str, dtype: torch.dtype) -> torch.dtype:
    if name.endswith("position"):
        return torch.int64
    if name in ("o", "out") or name.endswith(("_tail", "keys")):
        return dtype
    return torch.float64 if dtype == torch.float64 else torch.float32


def run_with_gradients(
    case: Case, inputs: dict[str, object], names: list[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    inputs = require_grad(inputs, names)
    outputs = case.run(inputs)
    return outputs, gradients(outputs, inputs, names, cotangents(outputs))


def assert_close(
    actual: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float, what: str
) -> None:
    assert actual.keys() == wanted.keys()
    errors = {name: relative_error(actual[name], wanted[name]) for name in wanted}
    bad = {name: f"{error:.2e}" for name, error in errors.items() if not error <= tolerance}
    assert not bad, f"{what}: relative errors over {tolerance:.0e}: {bad}"


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor], what: str) -> None:
    assert first.keys() == second.keys()
    different = [
        name
        for name in first
        if not torch.equal(first[name].detach(), second[name].detach())
        or first[name].dtype != second[name].dtype
    ]
    assert not different, f"{what}: {different} differ"


@each_dtype
@each_case
def test_value(case: Case, dtype: torch.dtype) -> None:
    outputs = case.run(case.inputs(dtype))
    for name, output in outputs.items():
        assert output.dtype == _output_dtype(name, dtype), name
    assert_close(outputs, expected(case, dtype)[0], case.tolerance(dtype), case.id)


@each_dtype
@each_differentiable
def test_gradients(case: Case, dtype: torch.dtype) -> None:
    inputs = case.inputs(dtype)
    names = case.differentiable(inputs)
    _, actual = run_with_gradients(case, inputs, names)
    leaves = named_tensors(inputs)
    for name, grad in actual.items():
        assert grad.dtype == leaves[name].dtype, name
    assert_close(actual, expected(case, dtype)[1], case.tolerance(dtype), case.id)


@each_differentiable
def test_gradcheck(case: Case) -> None:
    inputs = case.inputs(torch.float64)
    names = case.differentiable(inputs)
    found = named_tensors(inputs)
    leaves = {name: found[name].clone().requires_grad_() for name in names if found[name].numel()}

    def function(*values: Tensor) -> tuple[Tensor, ...]:
        chosen = dict(zip(leaves, values, strict=True))
        outputs = case.run(map_tensors(lambda name, tensor: chosen.get(name, tensor), inputs))
        return tuple(output for output in outputs.values() if output.requires_grad)

    if leaves:
        assert torch.autograd.gradcheck(
            function, tuple(leaves.values()), fast_mode=True, atol=1e-6, rtol=1e-4
        )


@each_differentiable
def test_gradients_of_one_input_at_a_time(case: Case) -> None:
    inputs = case.inputs(torch.float32)
    names = case.differentiable(inputs)
    _, together = run_with_gradients(case, inputs, names)
    for name in names:
        _, alone = run_with_gradients(case, inputs, [name])
        assert_close(alone, {name: together[name]}, 1e-6, case.id)


@each_differentiable
def test_gradients_of_one_output_at_a_time(case: Case) -> None:
    """Absent output gradients count as zero, so the single contributions add up."""
    leaves = require_grad(
        inputs := case.inputs(torch.float64), names := case.differentiable(inputs)
    )
    outputs = case.run(leaves)
    grads = cotangents(outputs)
    total = gradients(case.run(leaves), leaves, names, grads)
    parts = [gradients(case.run(leaves), leaves, names, {name: grads[name]}) for name in grads]
    summed = {name: sum((part[name] for part in parts), start=0 * total[name]) for name in names}
    assert_close(summed, total, 1e-9, case.id)


@each_differentiable
def test_expanded_output_gradients(case: Case) -> None:
    """What `.sum().backward()` sends back has no strides."""
    inputs = case.inputs(torch.float32)
    names = case.differentiable(inputs)
    results = []
    for expanded in (False, True):
        leaves = require_grad(inputs, names)
        outputs = case.run(leaves)
        ones = {name: torch.ones((), dtype=t.dtype).expand_as(t) for name, t in outputs.items()}
        grads = {n: t if expanded else t.contiguous() for n, t in ones.items() if n != POSITION}
        results.append(gradients(outputs, leaves, names, grads))
    assert_same_bits(results[0], results[1], case.id)


@each_case
def test_repetition_is_bitwise(case: Case) -> None:
    def once() -> dict[str, Tensor]:
        inputs = case.inputs(torch.float32)
        if case.in_place:
            return case.run(inputs)
        outputs, grads = run_with_gradients(case, inputs, case.differentiable(inputs))
        return {**outputs, **{f"grad {name}": grad for name, grad in grads.items()}}

    assert_same_bits(once(), once(), case.id)


@each_case
def test_threads_agree(case: Case, threads: None) -> None:
    inputs = case.inputs(torch.float32)
    results = []
    for count in (1, 2):
        torch.set_num_threads(count)
        if case.in_place:
            results.append(case.run(inputs))
        else:
            outputs, grads = run_with_gradients(case, inputs, case.differentiable(inputs))
            results.append({**outputs, **{f"grad {name}": grad for name, grad in grads.items()}})
    assert_close(results[1], results[0], case.tolerance(torch.float32), case.id)


@each_case
def test_modes_agree_bitwise(case: Case) -> None:
    """inference_mode and no_grad compute what training computes."""
    inputs = case.inputs(torch.float32)
    wanted = case.run(require_grad(inputs, case.differentiable(inputs)))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            outputs = case.run(case.inputs(torch.float32))
        assert not any(output.requires_grad for output in outputs.values())
        assert_same_bits(outputs, wanted, f"{case.id} under {mode.__name__}")


@each_case
def test_inputs_are_not_changed_and_outputs_own_their_memory(case: Case) -> None:
    inputs = case.inputs(torch.float32)
    before = map_tensors(lambda _, tensor: tensor.clone(), inputs)
    outputs = case.run(inputs)
    assert_same_bits(named_tensors(inputs), named_tensors(before), case.id)
    owners = {
        tensor.untyped_storage().data_ptr(): name
        for name, tensor in named_tensors(inputs).items()
        if tensor.numel()
    }
    for name, output in outputs.items():
        if output.numel():
            pointer = output.untyped_storage().data_ptr()
            assert pointer not in owners, f"{case.id}: {name} shares memory with {owners[pointer]}"
            owners[pointer] = name


@pytest.mark.parametrize("case", [c for c in THOROUGH if not c.in_place], ids=lambda case: case.id)
def test_second_differentiation_raises(case: Case) -> None:
    inputs = case.inputs(torch.float64)
    name = case.differentiable(inputs)[0]
    leaves = require_grad(inputs, [name])
    output = next(iter(case.run(leaves).values()))
    (grad,) = torch.autograd.grad(
        output.square().sum(), named_tensors(leaves)[name], create_graph=True
    )
    with pytest.raises(RuntimeError, match=rf"{case.op}.*(second|twice|once|first.order)"):
        grad.sum().backward()


@pytest.mark.parametrize("case", [c for c in THOROUGH if not c.in_place], ids=lambda case: case.id)
def test_gradients_flow_through_non_leaves(case: Case) -> None:
    inputs = case.inputs(torch.float64)
    names = case.differentiable(inputs)
    leaves = require_grad(inputs, names)
    doubled = map_tensors(lambda name, t: 2 * t if name in names else t, leaves)
    outputs = case.run(doubled)
    actual = gradients(outputs, leaves, names, cotangents(outputs))
    twice = map_tensors(lambda name, t: 2 * t if name in names else t, inputs)
    _, wanted = run_with_gradients(case, twice, names)
    assert_close(actual, {name: 2 * grad for name, grad in wanted.items()}, 1e-12, case.id)


@pytest.mark.parametrize("op", ["omega_rule", "exp_omega_rule"])
def test_tails_of_no_elements_may_have_gradients(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a final state tails come all the same, and tracing makes gradients for them."""
    without = [c for c in DIFFERENTIABLE if c.op == op and not c.options["output_final_state"]]
    case = next(c for c in without if c.inputs()["gamma"].shape[-1] > 1)
    module = import_module(f"atlas_ext.ops.{op}")
    function = getattr(module.operators(), op)
    raw: list[Any] = []

    def record(*arguments: Any) -> Any:
        raw.append(function(*arguments))
        return raw[-1]

    monkeypatch.setattr(module, "operators", lambda: SimpleNamespace(**{op: record}))
    rounded = case.inputs(torch.float32)
    inputs = require_grad(rounded, case.differentiable(rounded))
    case.run(inputs)
    leaves = [leaf for leaf in named_tensors(inputs).values() if leaf.requires_grad]
    outputs = [out for out in raw[0] if isinstance(out, Tensor) and out.requires_grad]
    assert any(out.numel() == 0 for out in outputs)
    wanted = torch.autograd.grad(outputs[0].sum(), leaves, retain_graph=True, allow_unused=True)
    # Memory of their own is not theirs to read.
    ones = [
        torch.ones_like(out) if out.numel() else out.new_full((4096,), torch.nan)[:0]
        for out in outputs
    ]
    found = torch.autograd.grad(outputs, leaves, ones, allow_unused=True)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
