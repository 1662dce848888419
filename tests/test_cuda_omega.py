"""The Omega rule's CUDA kernels, emulated, beyond the registry: sizes that take other paths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cuda_checks import check_case, check_causal, check_wrong_bounds, each_wrong_bounds

import atlas_ext
from atlas_ext import testing
from atlas_ext.testing import Case, _omega

pytestmark = pytest.mark.usefixtures("emulator")
F32 = torch.float32


def is_linear(case: Case) -> bool:
    given = case.inputs(F32)
    weights = given.get("weights") or given["initial_state"].weights
    return len(weights) == 1 and not case.orthogonalised


LINEAR = [case for case in testing.cases("omega_rule") if is_linear(case)]


def backward_counters(case: Case, backend: Any) -> tuple[int, int]:
    """Launches and blocks of a backward."""
    given = case.inputs(F32)
    inputs = testing.require_grad(given, case.differentiable(given))
    outputs = case.run(inputs)
    backend.reset_counters()
    outputs["o"].sum().backward()
    counters = backend.counters()
    return counters["launches"], counters["blocks"]


@pytest.mark.parametrize("case", testing.cases("omega_rule"), ids=lambda case: case.id)
def test_tf32(case: Case, backend: Any, matmul_precision: None) -> None:
    """A deep memory's gradient passes through more rounded products than its output."""
    torch.set_float32_matmul_precision("high")
    if case.orthogonalised:
        check_case(case, tolerance=3e-2)
    else:
        check_case(case, tolerance=2e-3, grad_tolerance=3e-3)


SLICED = {
    "residual": {"K": 64, "V": 64, "residual": True},
    "state": {"V": 96, "positions": (3, 9), "theta": True},
    "packed": {
        "K": 6, "V": 64, "degree": 2, "scales": True, "lengths": (7, 0, 12), "per_sequence": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SLICED)
def test_slices_of_v(name: str, backend: Any) -> None:
    """Few heads, many multiprocessors: blocks share a linear memory's outputs."""
    lead = (1, 19) if name == "packed" else (2, 19)
    case = _omega(name, "", lead, W=5, chunk_size=8, **SLICED[name])
    items = 6 if name == "packed" else 4
    for multiprocessors in (2 * items, 108):  # with 108 blocks share chunks, too
        backend.set_device(80, multiprocessors)
        backend.reset_counters()
        with torch.no_grad():
            case.run(case.inputs(F32))
        assert backend.counters()["blocks"] == 2 * items
        check_case(case)


PARTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"theta": True, "scales": True, "degree": 2},
    "windows_of_a_chunk": {"W": 9},
    "one_token_each": {"W": 2, "chunk_size": 1},
    "in_the_middle_of_chunks": {
        "K": 5, "V": 5, "positions": (3, 14), "theta": True, "residual": True,
    },
    "packed": {"lengths": (7, 0, 12), "per_sequence": True},
    "packed_in_the_middle": {"lengths": (2, 17, 0), "per_sequence": True, "positions": (7, 6, 2)},
}  # fmt: skip
# What a sequence may have: a position adds one; a packed one may have all tokens.
PARTED_CHUNKS = {
    "one_token_each": 19, "in_the_middle_of_chunks": 4, "packed_in_the_middle": 4,
}  # fmt: skip


@pytest.mark.parametrize("name", PARTED)
def test_chunks_at_the_same_time(name: str, backend: Any) -> None:
    """The backward of few heads on many multiprocessors: a walk over the states, then the rest."""
    lead = (1, 19) if name.startswith("packed") else (2, 19)
    case = _omega(name, "", lead, **{"W": 5, "chunk_size": 8, **PARTED[name]})
    items, chunks = (6 if name.startswith("packed") else 4), PARTED_CHUNKS.get(name, 3)
    for multiprocessors in (2 * items - 1, 2 * items, 108):
        parts = min(multiprocessors // items, chunks)
        backend.set_device(80, multiprocessors)
        launches, blocks = backward_counters(case, backend)
        assert (launches, blocks) == ((1, items) if parts == 1 else (2, items * (1 + parts)))
        check_case(case)


def test_windows_beyond_a_chunk_are_not_shared(backend: Any) -> None:
    case = _omega("wide", "", (2, 19), W=10, chunk_size=8)
    assert backward_counters(case, backend) == (1, 4)


@pytest.mark.parametrize("case", LINEAR, ids=lambda case: case.id)
def test_one_block_for_each_head(case: Case, backend: Any) -> None:
    """The registry's cases where no multiprocessor is idle."""
    backend.set_device(80, multiprocessors=1)
    check_case(case)


LARGE = {
    "linear": {"K": 40, "V": 36, "theta": True},
    "features": {"K": 9, "V": 20, "degree": 2, "scales": True, "theta": True},
    "many_features": {"K": 14, "V": 8, "degree": 3, "W": 40, "chunk_size": 48},
    "mlp": {"K": 24, "V": 28, "F": 40, "memory": "mlp", "theta": True},
    "gated": {"K": 16, "V": 16, "F": 48, "memory": "gated_mlp", "theta": True, "residual": True},
    "muon": {"K": 24, "V": 40, "theta": True, "ns_steps": 3, "ns_every": 8},
    "mlp_muon": {"K": 12, "F": 32, "memory": "mlp", "ns_steps": 2, "ns_every": 16, "degree": 2},
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_buffers_in_device_memory(name: str) -> None:
    """What does not fit in sm_75's shared memory, and blocks that take items in turn."""
    options = {"W": 12, "chunk_size": 32, "H": 2, **LARGE[name]}
    case = _omega(name, "", (2, 75), **options)
    with testing.emulated(capability=75) as module:
        module.set_device(75, multiprocessors=3)
        module.reset_counters()
        with torch.no_grad():
            case.run(case.inputs(F32))
        assert module.counters()["blocks"] in (3, 4)
        check_case(case)


TEAMS: dict[str, dict[str, Any]] = {
    "mlp": {"K": 24, "V": 28, "F": 40, "memory": "mlp"},
    "gated": {"K": 16, "V": 16, "F": 48, "memory": "gated_mlp", "theta": True, "residual": True},
    "dot": {"K": 20, "V": 20, "F": 36, "memory": "gated_mlp", "objective": "dot", "theta": True},
    "features": {
        "K": 4, "V": 40, "F": 36, "memory": "mlp", "degree": 2, "scales": True,
    },
    "in_the_middle_of_chunks": {
        "K": 12, "V": 34, "F": 33, "memory": "mlp", "positions": (3, 45), "theta": True,
    },
    "packed": {
        "K": 12, "F": 40, "memory": "gated_mlp", "lengths": (40, 0, 3, 32), "per_sequence": True,
        "theta": True,
    },
    "wide_window": {"K": 12, "F": 40, "memory": "mlp", "W": 50, "theta": True},
    "one_token_each": {"K": 20, "F": 40, "memory": "mlp", "theta": True, "chunk_size": 1},
}  # fmt: skip


def team_case(name: str) -> Case:
    lead = (1, 75) if name == "packed" else (2, 7 if name == "one_token_each" else 75)
    return _omega(name, "", lead, **{"W": 12, "chunk_size": 32, **TEAMS[name]})


@pytest.mark.parametrize("multiprocessors", [4, 108])
@pytest.mark.parametrize("name", TEAMS)
def test_teams(name: str, multiprocessors: int, backend: Any) -> None:
    """Few heads of a deep memory that does not fit on chip: blocks share every chunk."""
    case = team_case(name)
    items = 8 if name == "packed" else 4
    multiprocessors *= items if multiprocessors < 108 else 1
    backend.set_device(80, multiprocessors, shared_kib=6)
    chunks = 7 if name == "one_token_each" else 3 + (name == "in_the_middle_of_chunks")
    backend.reset_counters()
    with torch.no_grad():
        case.run(case.inputs(F32))
    assert backend.counters()["launches"] == 2 + 2 * chunks
    assert backward_counters(case, backend)[0] == 2 + 4 * chunks
    check_case(case)
    check_case(case, torch.bfloat16)


def test_blocks_of_teams(backend: Any) -> None:
    """43 rows of the window, 32 tokens, 48 hidden units, 16 outputs; two heads."""
    case = _omega("gated", "", (1, 32), W=12, chunk_size=32, **TEAMS["gated"])
    forward_and_backward = {108: ((3, 2, 5), (3, 2, 5)), 8: ((2, 1, 3), (3, 2, 3))}
    for multiprocessors, plans in forward_and_backward.items():
        backend.set_device(80, multiprocessors, shared_kib=6)
        backend.reset_counters()
        with torch.no_grad():
            case.run(case.inputs(F32))
        rows, tokens, parts = plans[0]
        wanted = rows + 1 + tokens + parts + 2 * (parts + 1)
        assert backend.counters()["blocks"] == 2 * wanted
        rows, tokens, parts = plans[1]
        wanted = rows + 1 + tokens + rows + parts + parts + 1 + 2 * (parts + 1)
        assert backward_counters(case, backend)[1] == 2 * wanted


def test_teams_of_features(backend: Any) -> None:
    """Blocks share a lifted layer's features, not its columns: 91 of them in tiles of 32."""
    options = {"K": 12, "V": 20, "F": 40, "memory": "mlp", "degree": 2}
    case = _omega("features", "", (1, 20), H=1, W=250, chunk_size=20, **options)
    backend.set_device(80, 108, shared_kib=6)
    backend.reset_counters()
    with torch.no_grad():
        case.run(case.inputs(F32))
    rows, tokens, parts = 17, 2, 3 + 1
    assert backend.counters()["blocks"] == rows + 1 + tokens + parts + 2 * (parts + 1)
    check_case(case)


@pytest.mark.parametrize("multiprocessors", [16, 108])
def test_teams_of_features_with_momentum(multiprocessors: int, backend: Any) -> None:
    """66 features in tiles of 32, or of 64, states taking turns, a given M_ref."""
    options = {"K": 10, "V": 12, "F": 36, "memory": "gated_mlp", "degree": 2, "scales": True}
    case = _omega(
        "features", "", (2, 50), W=230, chunk_size=20, theta=True, positions=(3, 30), **options
    )
    backend.set_device(80, multiprocessors, shared_kib=6)
    assert backward_counters(case, backend)[0] == 2 + 4 * 4
    check_case(case)


def test_many_packed_sequences_make_no_teams(backend: Any) -> None:
    """Each launch would be made for every chunk of the longest sequence that there may be."""
    options = {"F": 40, "K": 12, "memory": "mlp", "theta": True}
    for count, launches in ((8, 2 + 4 * 2), (9, 1)):
        lengths = (2,) * count
        case = _omega("packed", "", (1, 2 * count), lengths=lengths, chunk_size=count, **options)
        backend.set_device(80, 108, shared_kib=6)
        assert backward_counters(case, backend)[0] == launches


def test_endless_chunks(backend: Any) -> None:
    options = {"K": 20, "F": 40, "memory": "mlp", "theta": True, "positions": (7,)}
    case = _omega("endless", "", (1, 9), chunk_size=2**63 - 1, **options)
    for kibibytes, launches in ((0, 1), (6, 2 + 4 * 2)):  # with a position one chunk more
        backend.set_device(80, 108, shared_kib=kibibytes)
        assert backward_counters(case, backend)[0] == launches
        check_case(case)


def test_no_teams_where_heads_fill_the_device_or_states_fit(backend: Any) -> None:
    case = team_case("gated")
    for multiprocessors, kibibytes in ((15, 6), (108, 0)):
        backend.set_device(80, multiprocessors, shared_kib=kibibytes)
        assert backward_counters(case, backend) == (1, 4)


# Items of each; what a head uses most fits twice in the shared memory, its chunk does not.
TWO_HEADS: dict[str, tuple[int, dict[str, Any]]] = {
    "mlp": (6, {"K": 24, "V": 28, "F": 40, "H": 3, "memory": "mlp"}),
    "gated": (4, {**TEAMS["gated"], "F": 40}),
    "features": (
        4,
        {
            "K": 8, "V": 8, "F": 36, "memory": "mlp", "degree": 2, "scales": True, "theta": True,
            "chunk_size": 60,
        },
    ),
    "in_the_middle_of_chunks": (4, TEAMS["in_the_middle_of_chunks"] | {"V": 30}),
    "wide_window": (4, TEAMS["wide_window"]),
    "muon": (
        4,
        {"K": 12, "V": 12, "F": 72, "memory": "mlp", "theta": True, "ns_steps": 2, "ns_every": 16},
    ),
}  # fmt: skip


@pytest.mark.parametrize("memory", ["mlp", "gated_mlp"])
def test_features_in_the_memory_of_x(memory: str, backend: Any) -> None:
    """With Newton-Schulz: the same bits as where they have memory of their own."""
    options = {"K": 8, "V": 8, "F": 72, "degree": 2, "scales": True, "theta": True, "ns_steps": 2}
    case = _omega("muon", "", (2, 20), W=6, chunk_size=16, ns_every=4, memory=memory, **options)
    found = []
    for kibibytes in (163, 64, 24):  # squares and X have 64 KiB, squares 37
        backend.set_device(80, shared_kib=kibibytes)
        with torch.no_grad():
            found.append(case.run(case.inputs(F32))["o"])
        check_case(case)
        check_case(case, torch.bfloat16)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def plan_of_blocks(items: int, multiprocessors: int) -> tuple[bool, int]:
    """Whether two heads share a multiprocessor, and how many blocks there are."""
    two = -(-items // multiprocessors) % 2 == 0
    return two, min(items, (2 if two else 1) * multiprocessors)


@pytest.mark.parametrize("name", TWO_HEADS)
def test_two_heads_on_a_multiprocessor(name: str, backend: Any) -> None:
    """Blocks of half the warps and shared memory, two for each multiprocessor, where that halves
    the rounds."""
    items, options = TWO_HEADS[name]
    case = _omega(name, "", (2, 75), **{"W": 12, "chunk_size": 32, **options})
    found: dict[bool, torch.Tensor] = {}
    for multiprocessors in range(1, items + 1):
        backend.set_device(80, multiprocessors, shared_kib=72 if name == "features" else 64)
        backend.reset_counters()
        with torch.no_grad():
            o = case.run(case.inputs(F32))["o"]
        two, blocks = plan_of_blocks(items, multiprocessors)
        assert backend.counters()["blocks"] == blocks
        assert backward_counters(case, backend) == (1, blocks)
        assert torch.equal(o, found.setdefault(two, o))
        if found[two] is o:
            check_case(case)
            check_case(case, torch.bfloat16)
    # Tiles of another width and norms by other warps add up in another order.
    assert torch.equal(found[False], found[True]) or name in ("features", "muon")


def test_packed_sequences_do_not_share_a_multiprocessor(backend: Any) -> None:
    case = team_case("packed")
    for multiprocessors in (2, 4):
        backend.set_device(80, multiprocessors, shared_kib=64)
        assert backward_counters(case, backend) == (1, multiprocessors)


@pytest.mark.parametrize("capability", [75, 86, 90])
@pytest.mark.parametrize("name", ["ragged", "mlp_features", "gated_muon"])
def test_other_devices(name: str, capability: int) -> None:
    case = next(c for c in testing.cases("omega_rule") if c.name == name)
    with testing.emulated(capability=capability):
        for dtype in (F32, torch.bfloat16):
            check_case(case, dtype)


def test_shared_memory_just_below_what_needs_opting_in(backend: Any) -> None:
    """47.6 KiB, and OmegaWork and OmegaGrads beside them: more than 48 KiB."""
    check_case(_omega("c1", "", (1, 2), H=1, K=64, V=64, W=4, chunk_size=1))


@pytest.mark.parametrize("memory", ["linear", "mlp"])
def test_causality_is_bitwise(memory: str, backend: Any) -> None:
    case = _omega("causal", "", (1, 23), W=4, memory=memory, theta=True, chunk_size=8)
    check_causal(case)


def test_causality_of_teams_is_bitwise(backend: Any) -> None:
    backend.set_device(80, 108, shared_kib=3)
    case = _omega("causal", "", (1, 23), F=40, W=4, memory="mlp", theta=True, chunk_size=8)
    check_causal(case)
    assert backward_counters(case, backend)[0] > 1


@each_wrong_bounds
def test_wrong_cu_seqlens_in_teams(bounds: tuple[int, ...], backend: Any) -> None:
    backend.set_device(80, 108, shared_kib=3)
    options = {"F": 40, "memory": "mlp", "theta": True, "chunk_size": 4}
    check_wrong_bounds(_omega("packed", "", (1, 11), lengths=(5, 6), **options), bounds)


@each_wrong_bounds
def test_wrong_cu_seqlens_touch_nothing_foreign(bounds: tuple[int, ...], backend: Any) -> None:
    case = _omega("packed", "", (1, 11), lengths=(5, 6), theta=True, chunk_size=4)
    check_wrong_bounds(case, bounds)


def test_negative_position_counts_as_zero(backend: Any) -> None:
    case = _omega("state", "", (1, 6), positions=(0,), chunk_size=4)
    inputs = case.inputs(F32)
    with torch.no_grad():
        wanted = case.run(inputs)["o"]
        state = inputs["initial_state"]
        inputs["initial_state"] = state._replace(position=state.position - 3)
        assert torch.equal(case.run(inputs)["o"], wanted)


def test_float64_is_refused(backend: Any) -> None:
    x = torch.zeros(1, 2, 1, 3, dtype=torch.float64)
    gates = torch.zeros(1, 2, 1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"omega_rule: q: wanted float32, bfloat16 or float16"):
        atlas_ext.omega_rule(
            x,
            x,
            x,
            gates.unsqueeze(-1),
            gates,
            weights=(torch.zeros(1, 3, 3, dtype=torch.float64),),
        )
