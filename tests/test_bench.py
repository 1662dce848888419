"""The benchmark's rivals compute what the reference computes; nothing here is timed."""

import pytest
import torch
from torch import Tensor

import atlas_ext
import atlas_ext.reference as reference
from atlas_ext import testing
from bench import eager, report, roofline
from bench.cases import CASES, find, update
from bench.cases.base import Case, OperatorCase, Rival, names_of
from bench.cases.layer import PlainLayer
from bench.cases.model import DecodeCase
from bench.cases.rule import allowance
from bench.timing import DIRECTIONS, Turns, evaluate, map_inputs, prepare, quartiles, tensors_of

LEAVES = {"forward": False, "forward+backward": True}


LINEAR, MLP, GATED = ((3, 4),), ((7, 4), (3, 7)), ((7, 4), (7, 4), (3, 7))
MEMORIES = {"linear": LINEAR, "mlp": MLP, "gated": GATED, "squat": ((3, 4), (3, 3))}
SQUARE = {"linear": ((4, 4),), "mlp": ((6, 4), (4, 6)), "gated": ((6, 4), (6, 4), (4, 6))}


def rule_inputs(shapes: tuple, *, batch: int = 2, tokens: int = 24) -> dict:
    generator = torch.Generator().manual_seed(0)
    sizes = {"H": 2, "K": 4, "V": shapes[-1][0], "W": 6}
    inputs = testing.omega_tensors(generator, (batch, tokens), **sizes, theta=True)
    inputs["weights"] = tuple(testing.normal(generator, 2, *shape) for shape in shapes)
    return inputs


def rule(function, **options):
    return lambda inputs: function(**inputs, **options)


def assert_equal_with_gradients(operator, expected, inputs: dict) -> None:
    leaves = map_inputs(lambda tensor: tensor.detach().requires_grad_(), inputs)
    grad = torch.randn(expected(inputs).shape, dtype=torch.float64)
    actual = evaluate(operator, leaves, DIRECTIONS[1], grad)
    wanted = evaluate(expected, leaves, DIRECTIONS[1], grad)
    names = ["output", *names_of(inputs)]
    for name, ours, theirs in zip(names, actual, wanted, strict=True):
        assert testing.relative_error(ours, theirs) < 1e-9, name


RULES = [eager.omega_rule_by_chunk, eager.omega_rule]


def assert_equals_reference(function, inputs: dict, ns_steps: int = 0, **options) -> None:
    options["chunk_size"] = 8
    assert_equal_with_gradients(
        rule(function, **options),
        lambda inputs: reference.omega_rule(**inputs, ns_steps=ns_steps, **options)[0],
        inputs,
    )


@pytest.mark.parametrize("function", RULES)
@pytest.mark.parametrize("memory", MEMORIES)
def test_eager_rule(function, memory) -> None:
    assert_equals_reference(function, rule_inputs(MEMORIES[memory]))


@pytest.mark.parametrize("function", RULES)
def test_eager_rule_with_features(function) -> None:
    assert_equals_reference(function, rule_inputs(((3, 15),)), degree=2)


@pytest.mark.parametrize("function", RULES)
@pytest.mark.parametrize("memory", SQUARE)
def test_eager_rule_with_residual(function, memory) -> None:
    assert_equals_reference(function, rule_inputs(SQUARE[memory]), residual=True)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("memory", SQUARE)
def test_eager_rule_with_newton_schulz(memory, residual) -> None:
    inputs = rule_inputs(SQUARE[memory], batch=1, tokens=16)
    assert_equals_reference(eager.omega_rule_muon, inputs, ns_steps=5, residual=residual)


@pytest.mark.parametrize("memory", ["linear", "mlp"])
def test_eager_exp_rule(memory) -> None:
    inputs = rule_inputs(MEMORIES[memory])
    inputs["eta"] = 0.1 * inputs["eta"]
    if memory == "linear":
        del inputs["weights"]
    assert_equal_with_gradients(
        rule(eager.exp_omega_rule, chunk_size=8),
        lambda inputs: reference.exp_omega_rule(**inputs, objective="l2", chunk_size=8)[0],
        inputs,
    )


def test_eager_rule_refuses_a_ragged_length() -> None:
    with pytest.raises(ValueError, match=r"T: wanted a multiple of 7, got 24"):
        rule(eager.omega_rule, chunk_size=7)(rule_inputs(LINEAR))


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 6), (2, 2, 7, 3)])
def test_eager_newton_schulz(shape) -> None:
    x = testing.conditioned(torch.Generator().manual_seed(0), *shape)
    assert_equal_with_gradients(
        lambda inputs: eager.newton_schulz(inputs["x"]),
        lambda inputs: reference.newton_schulz(inputs["x"]),
        {"x": x},
    )


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 1)])
def test_eager_poly_features(shape) -> None:
    x = testing.normal(torch.Generator().manual_seed(0), *shape)
    assert_equal_with_gradients(
        lambda inputs: eager.poly_features(inputs["x"]),
        lambda inputs: reference.poly_features(inputs["x"], 2),
        {"x": x},
    )


def test_work_counts() -> None:
    """By hand, at sizes where every term can be told from the others."""
    assert roofline.newton_schulz_flops(1, 2, 3, 1) == 2 * (2 * 2 * 3 + 2 * 2 * 2 + 2 * 2 * 3)
    assert roofline.poly_features_flops(5, 3) == 5 * 6 * 2
    # two chunks of 2, W = 2: 2 + 3 errors, 2 keys into the one new state pair, 4 reads of two
    # states, pairs (1 + 2) + (2 + 3)
    errors, states, reads, pairs = 5, 2 * 2, 4 * 2, 8
    products = 2 * 7 * 11 * (errors + states + reads) + 2 * pairs * (5 + 7)
    assert roofline.omega_rule_flops(4, 1, 5, ((7, 11),), 2, 2) == products
    # one more product with the last matrix for each error; scores of keys (5) and hidden (13)
    mlp, gated = ((13, 11), (7, 13)), ((13, 11), (13, 11), (7, 13))
    products = 2 * (13 * 11 + 7 * 13) * (errors + states + reads) + 2 * errors * 7 * 13
    products += 2 * pairs * (5 + 13 + 13 + 7)
    assert roofline.omega_rule_flops(4, 1, 5, mlp, 2, 2) == products
    products += 2 * 13 * 11 * (errors + states + reads) + 2 * pairs * 13
    assert roofline.omega_rule_flops(4, 1, 5, gated, 2, 2) == products
    # the exponential map, two chunks of 2, W = 2: 3 errors and 2 reads meet 2 keys, pairs as above;
    # scores of the window 3 + 3
    products = 3 * 2 * (5 + 7) + 2 * 2 * (5 + 2 * 7) + 8 * 7 + 6 * 5
    assert roofline.exp_omega_rule_flops(4, 3, 5, ((7, 5),), 2, 2) == 3 * 2 * products
    # rows of 13, raw-input maps at 5 errors and 4 reads; W2: forth and back, two states, 2 writes
    products = 3 * 2 * (5 + 13) + 2 * 2 * (5 + 2 * 13) + 8 * 13 + 6 * 5 + (5 + 4) * 13 * 5
    products += 7 * 13 * (2 * 5 + 2 * 4 + 2 * 2) + 8 * (7 + 13)
    assert roofline.exp_omega_rule_flops(4, 1, 5, ((13, 5), (7, 13)), 2, 2) == 2 * products
    # one sequence, two heads: 2 W error signals, then 2 W + 7 operations a weight
    size, back = 13 * 11 + 7 * 13, 7 * 13
    token = 2 * (2 * 3 * (size + back) + (2 * 3 + 7) * size)
    assert roofline.omega_rule_update_flops(1, 2, mlp, 3) == token
    assert roofline.omega_rule_update_bytes(1, 2, mlp) == 4 * 5 * 2 * size


def test_allowance_counts_what_a_forward_and_backward_hold() -> None:
    """At T = 128: two chunks of 4 heads with 2 * 64 * 256 weights and as many of momentum."""
    parts = allowance(128)
    assert parts["checkpoints"] == 4 * 2 * 4 * 2 * (2 * 64 * 256)
    case = find("mlp memory at")[0]
    assert isinstance(case, OperatorCase)
    tensors = tensors_of(case.inputs(128))
    assert parts["inputs"] == parts["gradients"] == sum(t.nbytes for t in tensors)
    assert parts["output"] == case.grad(128).nbytes


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_cases_are_complete(case: Case) -> None:
    assert case in find(case.name)
    assert [other.name for other in CASES].count(case.name) == 1
    assert len({rival.name for rival in case.rivals}) == len(case.rivals) > 0
    timed = any(rival.allowance is None for rival in case.rivals)
    assert case.most_rounds >= 15 or not timed
    assert case.flops(case.directions[-1]) > 0


def test_decoding_is_checked_against_the_reference() -> None:
    config = {"memory": "linear", "num_layers": 1, "hidden_size": 32, "num_heads": 2}
    rival = Rival("ours, context 8", length=8, at_most=True)
    case = DecodeCase(
        name="small", op="omega_rule_update", rivals=(rival,), preset="atlas-tiny", context=70,
        tokens=40, overrides=config,
    )  # fmt: skip
    assert case.missing is None
    assert all(error < case.tolerance for error in case.errors().values())
    case.call(rival, DIRECTIONS[0])()
    assert int(case.cache_after(8).position) == 8


@pytest.mark.parametrize("case", update.CASES, ids=lambda case: case.name)
def test_timed_updates_leave_the_state_finite(case) -> None:
    inputs = case.inputs(2)
    before = [tensor.clone() for tensor in inputs["state"].weights]
    if case.missing:
        pytest.skip(case.missing)
    with torch.no_grad():
        for _ in range(300):
            atlas_ext.omega_rule_update(**inputs, **case.options)
    for old, new in zip(before, inputs["state"].weights, strict=True):
        assert 0.1 < float(new.norm() / old.norm()) < 10.0


def test_plain_layer_equals_itself_with_the_reference() -> None:
    torch.manual_seed(0)
    layer, x = PlainLayer().double(), torch.randn(1, 64, 256, dtype=torch.float64)
    expected = layer(x, reference.omega_rule)
    assert testing.relative_error(layer(x, eager.omega_rule), expected) < 1e-9


def test_turns_pair_each_round_with_the_turn_before_it() -> None:
    calls = []
    turns = Turns({"rival": (lambda: calls.append("rival"), 2)})
    for _ in range(4):
        turns.take()
        calls.append("ours")
    assert calls == ["rival", "rival", "ours"] * 4
    assert len(turns.seconds("rival", 3)) == 3
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_prepared_call_asks_for_gradients_only_where_named(direction) -> None:
    seen = []

    def operator(inputs: dict) -> Tensor:
        seen.append(torch.is_grad_enabled() and inputs["x"].requires_grad)
        return inputs["x"] * 2

    prepare(operator, {"x": torch.ones(3)}, direction, torch.ones(3))()
    assert seen == [LEAVES[direction]]


def test_table_has_a_verdict_for_each_target() -> None:
    rival = {"name": "eager", "seconds": 2e-3, "ratio": 2.0, "ratio_quartiles": [1.9, 2.1]}
    rivals = [
        {**rival, "at_most": False, "target": 1.5, "met": True},
        {**rival, "at_most": False, "target": 4.0, "met": False},
        {**rival, "at_most": False, "target": None, "met": None},
        {**rival, "at_most": True, "target": 8.4, "met": None},
    ]
    run = {"case": "c", "direction": "forward", "seconds": 1e-3, "flops": 1e8, "peak_mib": {}}
    run |= {"memory_bound": False, "rivals": rivals}
    ceilings = {"sgemm_gflops": 200.0, "fma_gflops": None}
    machine = {"atlas_ext": {"ceilings": ceilings}}
    text = report.table({"benchmarks": [{"extra_info": run}], "machine_info": machine})
    verdicts = [line.split("|")[8].strip() for line in text.splitlines()[2:]]
    assert verdicts == ["met", "not met", "–", "none"]
    assert "50% sgemm" in text
    assert "≤ 8.4" in text


def test_table_names_what_was_absent_and_shows_rates_and_peaks() -> None:
    absent = {"name": "titans: not installed", "seconds": None, "ratio": None, "met": None}
    absent |= {"at_most": False, "target": 2.5}
    peak = {"name": "allowance", "seconds": None, "ratio": 1.2, "ratio_quartiles": [1.1, 1.3]}
    peak |= {"at_most": True, "target": 1.5, "met": True, "peaks_mib": [120.0, 100.0]}
    run = {"case": "c", "direction": "forward", "seconds": 0.5, "flops": 1e8, "peak_mib": {}}
    run |= {"memory_bound": False, "rivals": [absent, peak], "tokens_per_second": 128.0}
    machine = {"atlas_ext": {"ceilings": {"sgemm_gflops": 200.0, "fma_gflops": None}}}
    text = report.table({"benchmarks": [{"extra_info": run}], "machine_info": machine})
    lines = [[cell.strip() for cell in line.split("|")] for line in text.splitlines()[2:]]
    assert lines[0][4:9] == ["titans: not installed", "–", "–", "≥ 2.5", "none"]
    assert lines[1][5:9] == ["–", "1.20 [1.10, 1.30]", "≤ 1.5", "met"]
    assert lines[1][-2] == "120 / 100"
    assert "(128 tokens/s)" in lines[0][9]
