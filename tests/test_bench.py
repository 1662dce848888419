"""The benchmark's rivals compute what the reference computes; nothing here is timed."""

import pytest
import torch
from torch import Tensor

import atlas_ext.reference as reference
from atlas_ext import testing
from bench import eager, report, roofline
from bench.timing import DIRECTIONS, Turns, evaluate, map_inputs, prepare, quartiles

LEAVES = {"forward": False, "forward+backward": True}


def rule_inputs(features: int, *, batch: int = 2, tokens: int = 24) -> dict:
    generator = torch.Generator().manual_seed(0)
    inputs = testing.omega_tensors(generator, (batch, tokens), H=2, K=4, V=3, W=6, theta=True)
    inputs["weights"] = testing.linear_weights(generator, 2, V=3, D=features)
    return inputs


def rule(function, **options):
    return lambda inputs: function(**{**inputs, "weights": inputs["weights"][0]}, **options)


def assert_equal_with_gradients(operator, expected, inputs: dict) -> None:
    leaves = map_inputs(lambda tensor: tensor.detach().requires_grad_(), inputs)
    grad = torch.randn(expected(inputs).shape, dtype=torch.float64)
    actual = evaluate(operator, leaves, DIRECTIONS[1], grad)
    wanted = evaluate(expected, leaves, DIRECTIONS[1], grad)
    for name, ours, theirs in zip(["output", *inputs], actual, wanted, strict=True):
        assert testing.relative_error(ours, theirs) < 1e-9, name


@pytest.mark.parametrize("function", [eager.omega_rule_by_chunk, eager.omega_rule])
@pytest.mark.parametrize(("degree", "features"), [(None, 4), (2, 15)])
def test_eager_rule(function, degree, features) -> None:
    options = {"degree": degree, "chunk_size": 8}
    assert_equal_with_gradients(
        rule(function, **options),
        lambda inputs: reference.omega_rule(**inputs, **options)[0],
        rule_inputs(features),
    )


def test_eager_rule_with_newton_schulz() -> None:
    assert_equal_with_gradients(
        rule(eager.omega_rule_muon, chunk_size=8),
        lambda inputs: reference.omega_rule(**inputs, ns_steps=5, chunk_size=8)[0],
        rule_inputs(4, batch=1, tokens=16),
    )


def test_eager_rule_refuses_a_ragged_length() -> None:
    with pytest.raises(ValueError, match=r"T: wanted a multiple of 7, got 24"):
        rule(eager.omega_rule, chunk_size=7)(rule_inputs(4))


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
    assert roofline.omega_rule_flops(4, 1, 5, 7, 11, 2, 2) == products


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
