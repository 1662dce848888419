"""exp_omega_rule_update's CUDA kernels on the emulated backend, where the registry's cases end.

Long pasts that blocks share, windows and rows wider than a block's threads, sizes beyond shared
memory, positions that are none, strides, decoding after a prefill, capabilities.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from cuda_checks import CAPABILITIES, check, check_orders, check_strides, each_memory
from torch import Tensor

from atlas_ext import exp_omega_rule, exp_omega_rule_update, reference
from atlas_ext.testing import (
    cases,
    emulated,
    exp_omega_state,
    map_tensors,
    memory_weights,
    named_tensors,
    omega_tensors,
    run_in_place,
    wide_inputs,
)

pytestmark = pytest.mark.usefixtures("emulator")


def update_inputs(
    positions: tuple[int, ...],
    *,
    memory: str = "linear",
    H: int = 2,
    K: int = 4,
    V: int = 4,
    W: int = 3,
    F: int = 6,
    theta: bool = True,
    alpha: bool = True,
    room: int = 0,
    step: float = 1.0,  # of eta: the kernel of many keys is large
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    sizes: dict[str, Any] = {"H": H, "K": K, "V": V, "W": W}
    inputs = omega_tensors(generator, (len(positions),), **sizes, alpha=alpha, theta=theta)
    inputs["eta"] = step * inputs["eta"]
    inputs["state"] = exp_omega_state(
        generator, positions, **sizes, F=F, memory=memory, momentum=theta, room=room
    )
    return map_tensors(lambda _, t: t.float() if t.is_floating_point() else t, inputs)  # type: ignore[no-any-return]


run = partial(run_in_place, exp_omega_rule_update)


def run_reference(inputs: dict[str, Any], **options: Any) -> dict[str, Tensor]:
    return run_in_place(reference.exp_omega_rule_update, wide_inputs(inputs), **options)


@pytest.mark.parametrize("normalize", ["none", "softmax", "rms"])
@each_memory
def test_prefill_then_decode_is_one_pass(memory: str, normalize: str) -> None:
    T, C, B = 9, 4, 2
    generator = torch.Generator().manual_seed(0)
    tokens = omega_tensors(generator, (B, T), H=2, K=3, V=3, W=4, theta=True)
    weights = None
    if memory != "linear":
        weights = memory_weights(generator, B, 2, V=3, D=3, F=6, memory=memory)
    tokens, weights = map_tensors(lambda _, t: t.float(), (tokens, weights))
    options: dict[str, Any] = {"chunk_size": C, "objective": "l2", "normalize": normalize}
    wide_tokens, wide_weights = wide_inputs({"tokens": tokens, "weights": weights}).values()
    whole, final = reference.exp_omega_rule(
        **wide_tokens, weights=wide_weights, output_final_state=True, **options
    )
    assert final is not None
    with emulated(order="random"):
        for split in (0, 3, 6):
            first, state = exp_omega_rule(
                **{name: tensor[:, :split] for name, tensor in tokens.items()},
                weights=weights,
                output_final_state=True,
                **options,
            )
            assert state is not None
            decoded = [first]
            for t in range(split, T):
                token = {name: tensor[:, t] for name, tensor in tokens.items()}
                decoded.append(exp_omega_rule_update(**token, state=state, **options)[:, None])
            assert state.length == T
            shorter = map_tensors(
                lambda name, t: t[:, :T] if t.dim() == 4 and t.shape[1] > T else t, state
            )
            check(
                named_tensors({"o": torch.cat(decoded, 1), "state": shorter}),
                named_tensors({"o": whole, "state": final}),
            )


@pytest.mark.parametrize("normalize", ["none", "softmax"])
@pytest.mark.parametrize("memory", ["linear", "gated_mlp"])
def test_long_pasts_are_shared_by_blocks(memory: str, normalize: str) -> None:
    """Four pasts, of four blocks of keys at most: as many blocks as are useful, or one each."""
    inputs = update_inputs((3, 200), memory=memory, W=5, room=9, step=0.02)
    options: dict[str, Any] = {"objective": "l2", "normalize": normalize, "chunk_size": 3}
    wanted = run_reference(inputs, **options)
    for multiprocessors, parts in ((108, 4), (1, 1), (2, 2)):
        with emulated(order="random") as backend:
            backend.set_device(80, multiprocessors=multiprocessors)
            backend.reset_counters()
            check(run(inputs, **options), wanted)
            # Those of the walk, and of the tokens' ends.
            assert backend.counters()["launches"] == 2
            assert backend.counters()["blocks"] == 4 * parts + 4


@pytest.mark.parametrize(
    ("memory", "sizes", "options"),
    [
        # Window rows beyond groups of eight; rows wider than a block has threads.
        ("linear", {"K": 5, "V": 300, "W": 17}, {"objective": "l2"}),
        ("gated_mlp", {"K": 7, "V": 7, "F": 150, "W": 9}, {"residual": True, "normalize": "rms"}),
        # No row's error depends on the memory: the query alone walks, as far as the window.
        ("linear", {"K": 3, "V": 5, "W": 70, "theta": False}, {"normalize": "softmax"}),
        # More than the shared memory of an sm_75 holds: the window in the scratch.
        ("mlp", {"K": 130, "V": 6, "F": 5, "W": 40}, {"objective": "l2"}),
    ],
)
def test_sizes_beyond_a_block(memory: str, sizes: Any, options: dict[str, Any]) -> None:
    inputs = update_inputs((0, 90), memory=memory, H=1, step=0.02, **sizes)
    wanted = run_reference(inputs, chunk_size=7, **options)
    for capability in CAPABILITIES:
        with emulated(capability=capability):
            check(run(inputs, chunk_size=7, **options), wanted)


@pytest.mark.parametrize(("W", "blocks"), [(40, 1 + 4), (120, 1 + 1)])
def test_blocks_take_turns(W: int, blocks: int) -> None:
    """With scratch, of which every multiprocessor has one: of the walk, and of the tokens' ends."""
    inputs = update_inputs((2, 150), memory="mlp", K=130, W=W, step=0.02)
    wanted = run_reference(inputs, chunk_size=4, objective="l2")
    with emulated(capability=75) as backend:
        backend.set_device(75, multiprocessors=1)
        backend.reset_counters()
        check(run(inputs, chunk_size=4, objective="l2"), wanted)
        assert backend.counters()["blocks"] == blocks


@each_memory
def test_positions_that_are_none_touch_nothing(memory: str) -> None:
    """Negative, and beyond the room there is; the others go on."""
    inputs = update_inputs((3, 5, 2, 4), memory=memory)
    state = inputs["state"]
    state.length = 4  # as if the caller had not reserved for the second sequence
    state.position[2] = -1
    with emulated(order="random"):
        actual = run(inputs, chunk_size=4, objective="l2")
    assert actual["o"][1:3].isnan().all()
    before = named_tensors({"state": state})
    for name, tensor in before.items():
        assert torch.equal(actual[name][1:3], tensor[1:3]), name
    inputs["state"] = map_tensors(lambda _, t: t[[0, 3]], state)
    good = {name: x if name == "state" else x[[0, 3]] for name, x in inputs.items()}
    wanted = run_reference(good, chunk_size=4, objective="l2")
    check({name: tensor[[0, 3]] for name, tensor in actual.items()}, wanted)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("case", cases("exp_omega_rule_update"), ids=lambda case: case.name)
def test_capabilities(case: Any, capability: int) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        inputs = case.inputs(dtype)
        wanted = case.run_reference(wide_inputs(inputs))
        with emulated(order="random", capability=capability):
            check(case.run(inputs), wanted, case.tolerance(dtype))


@each_memory
def test_states_of_any_strides(memory: str) -> None:
    inputs = update_inputs((2, 3, 7), memory=memory, W=4, room=1)
    options: dict[str, Any] = {"chunk_size": 4, "objective": "l2"}
    short = ("keys", "k_tail", "v_tail")
    check_strides(exp_omega_rule_update, run_reference, inputs, short=short, **options)


def test_rows_that_stay_keep_their_bits() -> None:
    """Neither a decay nor a momentum: what came before the window is as it was."""
    inputs = update_inputs((9, 70), theta=False, alpha=False, W=3)
    with emulated():
        actual = run(inputs, chunk_size=8)
    for n, position in enumerate((9, 70)):
        before = inputs["state"].coefficients[0][n, : position - 2]
        assert torch.equal(actual["state.coefficients.0"][n, : position - 2], before)


def test_orders_of_threads_give_the_same_bits() -> None:
    inputs = update_inputs((2, 130), memory="gated_mlp", F=9, step=0.02)
    options: dict[str, Any] = {"objective": "l2", "normalize": "softmax", "chunk_size": 3}
    check_orders(lambda: run(inputs, **options))


def test_bad_arguments_and_float64_are_refused() -> None:
    inputs = update_inputs((2, 3), memory="mlp")
    wide = map_tensors(lambda _, t: t.double() if t.is_floating_point() else t, inputs)
    with emulated():
        with pytest.raises(RuntimeError, match=r"_update: q: wanted float32, .* float64"):
            exp_omega_rule_update(**wide)
        inputs["state"].keys = inputs["state"].keys.mT.contiguous().mT
        inputs["state"].length = 2  # room for another token: the buffers stay as they are
        with pytest.raises(RuntimeError, match=r"state\.keys: wanted stride 1 along the last"):
            exp_omega_rule_update(**inputs)
        inputs["state"].keys = inputs["state"].keys.double().contiguous()
        with pytest.raises(RuntimeError, match=r"_update: state\.keys: wanted float32, .* float64"):
            exp_omega_rule_update(**inputs)
