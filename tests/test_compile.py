"""The operators as torch.library sees them: opcheck, fullgraph compilation, FLOP formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

import atlas_ext
from atlas_ext.testing import (
    Case,
    cases,
    cotangents,
    gradients,
    memory_weights,
    named_tensors,
    omega_tensors,
    relative_error,
    require_grad,
)

THOROUGH = cases(thorough=True)
each_case = pytest.mark.parametrize("case", THOROUGH, ids=lambda case: case.id)


class Recorder(TorchDispatchMode):
    """Notes the calls of our raw operators, forward and backward, with the arguments they get."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "atlas_ext":
            first_order = not func._schema.name.endswith("_backward")

            def keep(tensor: Tensor) -> Tensor:
                return tensor.detach().clone().requires_grad_(first_order and tensor.requires_grad)

            self.calls.append((func, *tree_map_only(Tensor, keep, (args, kwargs))))
        return func(*args, **kwargs)


def run(
    case: Case, inputs: dict[str, Any], function: Callable[..., Any] | None = None
) -> dict[str, Tensor]:
    """Outputs and gradients of one call."""
    names = case.differentiable(inputs)
    inputs = require_grad(inputs, names)
    outputs = case.run(inputs, function)
    grads = gradients(outputs, inputs, names, cotangents(outputs))
    return {**outputs, **{f"grad {name}": grad for name, grad in grads.items()}}


@pytest.mark.filterwarnings("error:.*may not alias:UserWarning")
@each_case
def test_opcheck(case: Case) -> None:
    with Recorder() as recorder:
        run(case, case.inputs(torch.float32))
    ran = {func._schema.name for func, _, _ in recorder.calls}
    wanted = {f"atlas_ext::{case.op}"}
    if not case.in_place:
        wanted.add(f"atlas_ext::{case.op}_backward")
    assert wanted <= ran
    forward_args = next(args for func, args, _ in recorder.calls if "backward" not in str(func))
    assert case.in_place or any(tensor.requires_grad for tensor in _tensors(forward_args))
    for func, args, kwargs in recorder.calls:
        if func._schema.name in wanted:
            torch.library.opcheck(func, args, kwargs)


@pytest.mark.parametrize("needed, enabled", [(True, True), (True, False), (False, True)])
def test_checkpoints_are_written_for_training_alone(needed: bool, enabled: bool) -> None:
    case = cases("omega_rule", thorough=True)[0]
    inputs = require_grad(case.inputs(torch.float32), ["v"] if needed else [])
    with Recorder() as recorder, torch.set_grad_enabled(enabled):
        case.run(inputs)
    ((func, args, _),) = recorder.calls
    names = [argument.name for argument in func._schema.arguments]
    assert args[names.index("save_checkpoints")] is (needed and enabled)


def _tensors(args: tuple[Any, ...]) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(args) if isinstance(leaf, Tensor)]


@each_case
def test_compiles_fullgraph(case: Case) -> None:
    torch._dynamo.reset()
    inputs = case.inputs(torch.float32)
    op = getattr(atlas_ext, case.op)
    compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
    actual, wanted = run(case, inputs, compiled), run(case, inputs)
    for name in wanted:
        assert actual[name].dtype == wanted[name].dtype, name
        assert relative_error(actual[name], wanted[name]) <= 1e-6, name


@pytest.mark.parametrize(
    "op, name",
    [("poly_features", ""), ("newton_schulz", "")]
    + [("omega_rule", name) for name in ("ragged", "mlp", "gated")]
    + [("exp_omega_rule", "ragged")],
)
def test_one_compilation_serves_all_lengths(op: str, name: str) -> None:
    torch._dynamo.reset()
    function = getattr(atlas_ext, op)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=True)
    # Lengths apart from every other size and count: equal ones would share a symbol.
    for length, stance in ((10, "default"), (13, "fail_on_recompile"), (17, "fail_on_recompile")):
        with torch.compiler.set_stance(stance):
            actual = _with_gradient(compiled, *_sized(op, name, length))
        wanted = _with_gradient(function, *_sized(op, name, length))
        for key in wanted:
            assert relative_error(actual[key], wanted[key]) <= 1e-6, (length, key)


def _with_gradient(
    function: Callable[..., Any], inputs: dict[str, Any], options: dict[str, Any]
) -> dict[str, Tensor]:
    first = next(iter(inputs.values())).requires_grad_()
    outputs = named_tensors({"out": function(**inputs, **options)})
    outputs["grad"] = torch.autograd.grad(next(iter(outputs.values())).square().sum(), first)[0]
    return outputs


def _sized(op: str, name: str, length: int) -> tuple[dict[str, Any], dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    if not op.endswith("omega_rule"):
        return {"x": torch.randn(length, 4, 6, generator=generator)}, {}
    case = next(case for case in cases(op) if case.name == name)
    inputs = case.inputs(torch.float32)
    for key in ("q", "k", "v", "gamma", "eta", "log_alpha", "log_theta"):
        repeats = [1, 2] + [1] * (inputs[key].dim() - 2)
        inputs[key] = inputs[key].repeat(repeats)[:, :length].contiguous()
    return inputs, dict(case.options)


@pytest.mark.slow
def test_inductor() -> None:
    torch._dynamo.reset()
    case = next(case for case in cases("omega_rule") if case.name == "ragged")

    def layer(q: Tensor, k: Tensor, **rest: Any) -> Any:
        unit = torch.nn.functional.normalize
        output, state = atlas_ext.omega_rule(unit(q, dim=-1), unit(k, dim=-1), **rest)
        return torch.nn.functional.silu(output), state

    compiled = torch.compile(layer, fullgraph=True)
    inputs = case.inputs(torch.float32)
    actual, wanted = run(case, inputs, compiled), run(case, inputs, layer)
    for name in wanted:
        assert relative_error(actual[name], wanted[name]) <= 1e-4, name


@each_case
def test_flops_are_counted(case: Case) -> None:
    with FlopCounterMode(display=False) as counter:
        run(case, case.inputs(torch.float32))
    counts = {str(op): count for op, count in counter.get_flop_counts()["Global"].items()}
    assert counts.get(f"atlas_ext.{case.op}", 0) > 0, counts
    if not case.in_place:
        assert counts.get(f"atlas_ext.{case.op}_backward", 0) > 0, counts


@pytest.mark.parametrize("memory", ["mlp", "gated_mlp"])
def test_flops_of_a_deep_memory(memory: str) -> None:
    """One chunk, no overhang: errors, writes and reads at the matrices, causal products of rows."""
    T, K, V, F = 4, 5, 3, 7
    generator = torch.Generator().manual_seed(0)
    inputs = omega_tensors(generator, (1, T), H=1, K=K, V=V, W=1)
    weights = memory_weights(generator, 1, V=V, D=K, F=F, memory=memory)
    with FlopCounterMode(display=False) as counter:
        atlas_ext.omega_rule(**inputs, weights=weights, chunk_size=T)
    size, lifted = sum(w[0].numel() for w in weights), len(weights) - 1
    errors, causal = size + V * F, K + F * lifted + F + V
    assert counter.get_total_flops() == 2 * (T * (errors + 2 * size) + T * T * causal)


def test_flops_of_newton_schulz() -> None:
    """Three products a step: X Xᵀ, A A and (bA + cA²) X, at two FLOPs a multiply-add."""
    batch, m, n, steps = 3, 4, 6, 5
    with FlopCounterMode(display=False) as counter:
        atlas_ext.newton_schulz(torch.randn(batch, m, n), steps)
    products = batch * steps * (2 * 2 * m * m * n + 2 * m**3)
    assert 0.5 * products <= counter.get_total_flops() <= 1.5 * products
