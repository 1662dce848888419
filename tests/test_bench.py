"""The benchmark's rivals compute what the reference computes; nothing here is timed."""

import pytest
import torch
from torch import Tensor

import atlas_ext.reference as reference
from atlas_ext import testing
from bench import eager, packages, roofline, variants
from bench.timing import DIRECTIONS, evaluate, interleave, map_inputs, prepare, quartiles

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
    names = ["output", *testing.named_tensors(inputs)]
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


@pytest.mark.parametrize("every", [1, 4])
def test_eager_rule_of_the_presets(every) -> None:
    """Features and a residual before Newton-Schulz, with writes at some tokens only."""
    inputs = rule_inputs(((6, 15), (4, 6)), batch=1, tokens=16)
    options = {"residual": True, "degree": 2, "chunk_size": 8}
    assert_equal_with_gradients(
        rule(eager.omega_rule_muon, every=every, **options),
        lambda held: reference.omega_rule(**held, ns_steps=5, ns_every=every, **options)[0],
        inputs,
    )


def test_torch_muon_is_newton_schulz() -> None:
    # its singular values differ so much that another number of steps gives another result
    x = testing.normal(torch.Generator().manual_seed(0), 1, 12, 8).float()
    expected = reference.newton_schulz(x.double())
    assert testing.relative_error(packages.torch_muon({"x": x}), expected) < 3e-2  # bfloat16 inside


def test_all_take_turns_in_every_round() -> None:
    calls = []
    names = {name: lambda name=name: calls.append(name) for name in ("rival", "ours")}
    seconds = iter(range(100))

    def seconds_of(call) -> float:
        call()
        return float(next(seconds))

    taken = interleave(names, seconds_of, rounds=4)
    assert calls == ["rival", "ours"] * (2 + 4)
    assert taken == {"rival": [4, 6, 8, 10], "ours": [5, 7, 9, 11]}  # less two rounds to warm up
    calls.clear()
    assert len(interleave(names, seconds_of, rounds=40, most_seconds=0.0)["ours"]) == 3
    assert quartiles([1.0, 2.0, 3.0, 4.0, 5.0]) == (2.0, 3.0, 4.0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_prepared_call_asks_for_gradients_only_where_named(direction) -> None:
    seen = []

    def operator(inputs: dict) -> Tensor:
        seen.append(torch.is_grad_enabled() and inputs["x"].requires_grad)
        return inputs["x"] * 2

    prepare(operator, {"x": torch.ones(3)}, direction, torch.ones(3))()
    assert seen == [LEAVES[direction]]


def test_table_of_variants(monkeypatch) -> None:
    """Made anew it has the rows of the page, and what does not depend on the machine."""
    for name, value in (("BATCH", 1), ("LENGTH", 8), ("DECODED", 2)):
        monkeypatch.setattr(variants, name, value)
    page = variants.PAGE.read_text()
    _, part = page.split(f"<!-- begin {variants.PART} -->\n")
    stored = part.split(f"\n<!-- end {variants.PART} -->")[0].splitlines()
    made = variants.table(rounds=1).splitlines()
    assert made[:2] == stored[:2]
    assert [row.split("|")[:4] for row in made] == [row.split("|")[:4] for row in stored]
