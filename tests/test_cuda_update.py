"""omega_rule_update's CUDA kernel on the emulated backend, where the registry's cases end.

Prefill and decode together, slots and positions that are none, strides, sizes beyond one tile of
features and beyond shared memory, capabilities and precisions.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from cuda_checks import CAPABILITIES, check, check_orders, check_strides, each_memory
from torch import Tensor

from atlas_ext import omega_rule, omega_rule_update, poly_feature_dim, reference
from atlas_ext._case import ORTHOGONALISED_TOLERANCE, PLAIN_TOLERANCE
from atlas_ext.testing import (
    cases,
    emulated,
    map_tensors,
    memory_weights,
    named_tensors,
    omega_state,
    omega_tensors,
    relative_error,
    run_in_place,
    wide_inputs,
)

TF32_TOLERANCE = 3e-2
HALF_TYPES = (torch.bfloat16, torch.float16)
pytestmark = pytest.mark.usefixtures("emulator", "matmul_precision")


def update_inputs(
    positions: tuple[int, ...],
    *,
    memory: str = "linear",
    rows: int | None = None,
    H: int = 2,
    K: int = 4,
    V: int = 4,
    W: int = 3,
    F: int = 6,
    theta: bool = True,
    degree: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sizes: dict[str, Any] = {"H": H, "K": K, "V": V, "W": W}
    lead = (len(positions) if rows is None else rows,)
    inputs = omega_tensors(generator, lead, **sizes, theta=theta, scales=degree)
    D = poly_feature_dim(K, degree) if degree else K
    inputs["state"] = omega_state(
        generator, positions, **sizes, D=D, F=F, memory=memory, momentum=theta
    )

    def convert(name: str, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return tensor.to(dtype if name in ("q", "k", "v") or "tail" in name else torch.float32)

    inputs = map_tensors(convert, inputs)
    return inputs if degree is None else {**inputs, "degree": degree}


run = partial(run_in_place, omega_rule_update)


def run_reference(inputs: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    return run_in_place(reference.omega_rule_update, wide_inputs(inputs), **options)


@pytest.mark.parametrize("muon", [False, True])
@each_memory
def test_prefill_then_decode_is_one_pass(memory: str, muon: bool) -> None:
    T, C, B = 9, 4, 2
    generator = torch.Generator().manual_seed(0)
    tokens = omega_tensors(generator, (B, T), H=2, K=3, V=3, W=4, theta=True, scales=2)
    weights = memory_weights(generator, B, 2, V=3, D=10, F=6, memory=memory)
    tokens, weights = map_tensors(lambda _, t: t.float(), (tokens, weights))
    scales = tokens.pop("feature_scales")
    options: dict[str, Any] = {"chunk_size": C, "degree": 2, "residual": True}
    if muon:
        options |= {"ns_steps": 3, "ns_every": 2}
    with emulated(order="random"):
        whole, final = omega_rule(
            **tokens, weights=weights, feature_scales=scales, output_final_state=True, **options
        )
        for split in (0, 3, 6):
            first, state = omega_rule(
                **{name: tensor[:, :split] for name, tensor in tokens.items()},
                weights=weights,
                feature_scales=scales,
                output_final_state=True,
                **options,
            )
            decoded = [first]
            for t in range(split, T):
                token = {name: tensor[:, t] for name, tensor in tokens.items()}
                o = omega_rule_update(**token, state=state, feature_scales=scales, **options)
                decoded.append(o[:, None])
            tolerance = (ORTHOGONALISED_TOLERANCE if muon else PLAIN_TOLERANCE)[torch.float32]
            check(
                named_tensors({"o": torch.cat(decoded, 1), "state": state}),
                named_tensors({"o": whole, "state": final}),
                tolerance,
            )


@pytest.mark.parametrize("wide", [False, True])
@each_memory
def test_rows_without_a_slot_touch_nothing(memory: str, wide: bool) -> None:
    inputs = update_inputs((3, 5, -2, 7, 8), memory=memory, rows=6)
    bad = 2**40 if wide else 2**30
    slots = torch.tensor([4, 5, -1, 2, 1, bad], dtype=torch.int64 if wide else torch.int32)
    inputs["state_indices"] = slots
    with emulated(order="random"):
        actual = run(inputs, chunk_size=4)
    good = [0, 4]  # rows; 1, 2 and 5 have no slot, the position of 3 is negative
    rest = [1, 2, 3, 5]
    assert actual["o"][rest].isnan().all()
    alone = {
        name: tensor[good] if name not in ("state", "state_indices") else tensor
        for name, tensor in inputs.items()
    }
    alone["state_indices"] = slots[good]
    wanted = run_reference(alone, chunk_size=4)
    check({**actual, "o": actual["o"][good]}, wanted)
    before = named_tensors({"state": inputs["state"]})
    untouched = [0, 2, 3]
    for name, tensor in before.items():
        assert torch.equal(actual[name][untouched], tensor[untouched]), name


@pytest.mark.parametrize(
    ("sizes", "blocks"),
    [({}, 24), ({"K": 130, "V": 130, "W": 64}, 5)],
    ids=["a_block_each", "blocks_take_turns"],
)
def test_one_launch_counts_the_token_once(sizes: dict[str, int], blocks: int) -> None:
    """In every order of blocks and heads; from 2**60 - 1 on three heads cannot be counted."""
    positions = (0, 5, 2**60 - 2, 64, 2**60 - 1, 2**60, 2**62 - 1, -(2**63))
    good = 4
    inputs = update_inputs((*positions[:-1], -1), H=3, **sizes)
    inputs["state"].position[-1] = positions[-1]
    wanted = run_reference(map_tensors(lambda _, t: t[:good], inputs), chunk_size=64)
    for order, seed in (("forward", 0), ("reverse", 0), ("random", 1), ("random", 2)):
        with emulated(order=order, seed=seed) as backend:
            backend.set_device(75, multiprocessors=5)
            backend.reset_counters()
            actual = run(inputs, chunk_size=64)
            assert backend.counters()["launches"] == 1
            assert backend.counters()["blocks"] == blocks
        counted = actual["state.position"].tolist()
        assert counted == [*(p + 1 for p in positions[:good]), *positions[good:]]
        assert actual["o"][good:].isnan().all()
        check({name: tensor[:good] for name, tensor in actual.items()}, wanted)


@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("case", cases("omega_rule_update"), ids=lambda case: case.name)
def test_capabilities_and_precisions(case: Any, capability: int, precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    for dtype in (torch.float32,) if precision == "high" else (torch.float32, *HALF_TYPES):
        inputs = case.inputs(dtype)
        wanted = case.run_reference(wide_inputs(inputs))
        with emulated(order="random", capability=capability):
            actual = case.run(inputs)
        coarse = precision == "high" and case.orthogonalised and capability >= 80
        check(actual, wanted, TF32_TOLERANCE if coarse else case.tolerance(dtype))


@pytest.mark.parametrize("memory", ["mlp", "gated_mlp"])
def test_states_of_any_strides(memory: str) -> None:
    inputs = update_inputs((2, 3, 7), memory=memory, W=4)
    short = ("k_tail", "v_tail")
    check_strides(omega_rule_update, run_reference, inputs, short=short, chunk_size=4)


@pytest.mark.parametrize(
    ("memory", "sizes", "options"),
    [
        # 1001 features: two tiles beside 12 window rows, and groups of them beyond one of 8.
        ("gated_mlp", {"K": 10, "V": 10, "F": 7, "W": 12, "degree": 4}, {"residual": True}),
        ("linear", {"K": 10, "V": 5, "W": 17, "degree": 4, "theta": False}, {"objective": "dot"}),
        # More than the shared memory of an sm_75 holds: matrices of Newton-Schulz in the scratch.
        ("mlp", {"K": 70, "V": 66, "F": 130, "W": 2}, {"ns_steps": 2}),
    ],
)
def test_sizes_beyond_a_tile(memory: str, sizes: Any, options: dict[str, Any]) -> None:
    inputs = update_inputs((0, 20), memory=memory, **sizes)
    wanted = run_reference(inputs, chunk_size=3, **options)
    tolerance = ORTHOGONALISED_TOLERANCE if "ns_steps" in options else PLAIN_TOLERANCE
    for capability in CAPABILITIES:
        with emulated(capability=capability):
            check(run(inputs, chunk_size=3, **options), wanted, tolerance[torch.float32])


def test_tokens_that_do_not_write_only_decay() -> None:
    """Without a momentum the signals of such a token are not needed: the memory decays exactly."""
    inputs = update_inputs((0, 4), memory="mlp", theta=False)
    before = inputs["state"]
    with emulated():
        actual = run(inputs, ns_steps=3, ns_every=3, chunk_size=8)
    alpha = inputs["log_alpha"].exp()[..., None, None]
    for l, weights in enumerate(before.weights):
        assert relative_error(actual[f"state.weights.{l}"], alpha * weights) < 1e-7
        reference_now = actual[f"state.chunk_weights.{l}"]
        assert torch.equal(reference_now, before.chunk_weights[l])


def test_orders_of_threads_give_the_same_bits() -> None:
    inputs = update_inputs((2, 3), memory="gated_mlp", degree=2, F=9)
    check_orders(lambda: run(inputs, ns_steps=3, chunk_size=4))


def test_bad_arguments_and_float64_are_refused() -> None:
    inputs = update_inputs((2, 3))
    wide = map_tensors(lambda _, t: t.double() if t.is_floating_point() else t, inputs)
    with emulated():
        with pytest.raises(RuntimeError, match=r"_update: q: wanted float32, .* float64"):
            omega_rule_update(**wide)
        with pytest.raises(RuntimeError, match="q: wanted H >= 1 on CUDA, got 0"):
            omega_rule_update(**update_inputs((2, 3), H=0))
        with pytest.raises(RuntimeError, match="state_indices: wanted int32 or int64"):
            omega_rule_update(**inputs, state_indices=torch.zeros(2))
        state = inputs["state"]
        columns = tuple(w.mT.contiguous().mT for w in state.weights)
        with pytest.raises(RuntimeError, match=r"state\.weights: wanted stride 1 along the last"):
            omega_rule_update(**{**inputs, "state": state._replace(weights=columns)})
