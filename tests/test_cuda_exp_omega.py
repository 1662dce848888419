"""The exponential Omega rule's CUDA kernels, emulated, beyond the registry: sizes, bad values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_checks import check_case, check_causal, check_wrong_bounds, each_wrong_bounds

import atlas_ext
from atlas_ext import testing
from atlas_ext._exp_omega_cases import _case

pytestmark = pytest.mark.usefixtures("emulator")
F32 = torch.float32


LARGE = {
    "linear": {"K": 40, "V": 36, "normalize": "softmax", "theta": True},
    "one_chunk": {"K": 8, "V": 8, "W": 40, "chunk_size": 128, "positions": (70, 1)},
    "mlp": {"K": 24, "V": 28, "F": 96, "memory": "mlp", "theta": True},
    "gated": {"K": 16, "V": 16, "F": 64, "memory": "gated_mlp", "normalize": "rms"},
}  # fmt: skip


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("name", LARGE)
def test_buffers_in_device_memory(name: str, precision: str, matmul_precision: None) -> None:
    """What does not fit in a block's shared memory, and blocks that take items in turn."""
    torch.set_float32_matmul_precision(precision)
    options = {"W": 12, "chunk_size": 32, "objective": "l2", "step": 0.02, **LARGE[name]}
    case = _case(name, "", (2, 75), **options)
    capability = 75 if precision == "highest" else 86
    with testing.emulated(capability=capability) as module:
        module.set_device(capability, multiprocessors=3)
        module.reset_counters()
        with torch.no_grad():
            case.run(case.inputs(F32))
        counters = module.counters()
        assert counters["blocks"] == 3
        assert (counters["mma"] > 0) == (precision == "high")
        tolerance = 2e-3 if precision == "high" else case.tolerance(F32)
        check_case(case, tolerance=tolerance)


@pytest.mark.parametrize("capability", [75, 86, 90])
@pytest.mark.parametrize("name", ["ragged", "packed_states", "gated"])
def test_other_devices(name: str, capability: int) -> None:
    case = next(c for c in testing.cases("exp_omega_rule") if c.name == name)
    with testing.emulated(capability=capability):
        for dtype in (F32, torch.bfloat16):
            check_case(case, dtype)


@pytest.mark.parametrize("memory", ["linear", "mlp"])
def test_causality_is_bitwise(memory: str, backend: Any) -> None:
    options = {"memory": memory, "objective": "l2", "normalize": "softmax", "step": 0.3}
    case = _case("causal", "", (1, 23), W=4, theta=True, chunk_size=8, **options)
    check_causal(case)


@each_wrong_bounds
def test_wrong_cu_seqlens_touch_nothing_foreign(bounds: tuple[int, ...], backend: Any) -> None:
    case = _case("packed", "", (1, 11), lengths=(5, 6), theta=True, chunk_size=4)
    check_wrong_bounds(case, bounds)


@pytest.mark.parametrize("memory", ["linear", "gated_mlp"])
def test_positions_without_room_give_nan(memory: str, backend: Any) -> None:
    """Negative, beyond the state's room, beyond the final state's; the fourth sequence goes on."""
    options: dict[str, Any] = {"memory": memory, "objective": "l2", "theta": True}
    case = _case("state", "", (4, 6), positions=(2, 5, 4, 3), room=3, chunk_size=4, **options)
    names = case.differentiable(case.inputs(F32))

    def run(positions: list[int]) -> dict[str, torch.Tensor]:
        inputs = testing.require_grad(case.inputs(F32), names)
        inputs["initial_state"].position = torch.tensor(positions)
        outputs = case.run(inputs)
        grads = testing.gradients(outputs, inputs, names, testing.cotangents(outputs))
        return {name: output.detach() for name, output in outputs.items()} | grads

    wanted, found = run([2, 5, 4, 3]), run([-1, 9, 6, 3])  # room for 8; finally for 5 + 6
    assert found["final_state.position"].tolist() == [-1, -1, -1, 9]
    for name, value in wanted.items():
        assert torch.equal(found[name][3], value[3]), name
    for name in ("o", "final_state.keys", "final_state.coefficients.0", "final_state.k_tail", "q"):
        assert found[name][:3].isnan().all(), name
    for name in names:  # of what the state has no such position for: NaN or nothing
        assert (found[name][:3].nan_to_num() == 0).all(), name


def test_a_state_without_a_position_stays_without(backend: Any) -> None:
    """Also where no final state limits it; a position that only that would exceed is right."""
    case = _case("state", "", (2, 6), positions=(5, 4), room=3, chunk_size=4)
    inputs = case.inputs(F32)
    state, options = inputs.pop("initial_state"), {"chunk_size": 4}
    state.position = torch.tensor([-1, 6])
    with torch.no_grad():
        o, _ = atlas_ext.exp_omega_rule(**inputs, initial_state=state, **options)
        assert o[0].isnan().all() and o[1].isfinite().all()
        _, lost = atlas_ext.exp_omega_rule(
            **inputs, initial_state=state, output_final_state=True, **options
        )
        assert lost.position.tolist() == [-1, -1]
        token = {name: x[:, 0] for name, x in inputs.items() if x is not None}
        assert atlas_ext.exp_omega_rule_update(**token, state=lost, **options).isnan().all()


def test_final_state_of_packed_sequences_has_room_for_the_longest(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds that are read; wrong ones ask for no more than T, captured calls for T and before."""
    sizes: dict[str, Any] = {"lengths": (4, 5, 2), "positions": (3, 1, 3), "chunk_size": 4}
    inputs = _case("packed", "", (1, 11), **sizes).inputs(F32)

    def final() -> Any:
        return atlas_ext.exp_omega_rule(**inputs, output_final_state=True, chunk_size=4)[1]

    with torch.no_grad():
        assert (final().capacity, final().length) == (7, 7)
        inputs["cu_seqlens"] = torch.tensor([0, 4, 1 << 40, 3])
        inputs["initial_state"].position = torch.tensor([3, 1 << 40, -5])
        assert final().capacity == 10  # of seven tokens after three at most
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert final().capacity == 14


def test_a_state_of_float64_is_refused_by_its_name(backend: Any) -> None:
    inputs = _case("state", "", (2, 6), positions=(5, 4)).inputs(F32)
    inputs["initial_state"].keys = inputs["initial_state"].keys.double()
    with pytest.raises(RuntimeError, match=r"exp_omega_rule: initial_state\.keys: wanted float32"):
        atlas_ext.exp_omega_rule(**inputs)


def test_float64_is_refused(backend: Any) -> None:
    case = testing.cases("exp_omega_rule")[0]
    with pytest.raises(RuntimeError, match=r"exp_omega_rule: q: wanted float32, .* got float64"):
        case.run(case.inputs(torch.float64))
