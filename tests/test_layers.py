"""ShortConvolution and OmegaMemory: continuation, packing, causality, gates."""

import math

import pytest
import torch
import torch.nn.functional as F

from atlas_ext.layers import AtlasBlock, MemoryState, OmegaMemory, ShortConvolution

HIDDEN, HEADS, LENGTH = 24, 3, 23
MUON = {"ns_steps": 5, "ns_every": 3, "chunk_size": 5}
# name: options of OmegaMemory; chunk 5 and window 7 make windows cross chunks and exceed them
LAYERS = {
    "hebbian": {"objective": "dot", "window": 1, "momentum": False, "retention": False},
    "delta": {"window": 1, "momentum": False, "retention": False, "chunk_size": 1},
    "swla": {"objective": "dot", "window": 4, "momentum": False, "chunk_size": 5},
    "omega": {"window": 7, "momentum": False, "degree": 2, "chunk_size": 5},
    "atlas": {"window": 7, "degree": 2, "ns_steps": 5, "ns_every": 3, "chunk_size": 5},
    "no_conv": {"window": 3, "chunk_size": 4, "conv_size": 1, "head_dim": 5},
    "mlp": {"memory": "mlp", "window": 1, "chunk_size": 5},
    "dot_mlp": {"memory": "mlp", "objective": "dot", "window": 1, "momentum": False, "degree": 2},
    "atlas_mlp": {"memory": "mlp", "window": 7, "degree": 2, **MUON},
    "atlas_gated": {"memory": "gated_mlp", "residual": False, "window": 3, "degree": 2, **MUON},
}


def make_layer(name: str) -> OmegaMemory:
    torch.manual_seed(0)
    return OmegaMemory(HIDDEN, HEADS, **LAYERS[name])


def tolerance(name: str) -> dict[str, float]:
    # Newton-Schulz amplifies round-off of its input
    loose = LAYERS[name].get("ns_steps", 0) > 0
    return {"rtol": 2e-3, "atol": 5e-4} if loose else {"rtol": 1e-4, "atol": 2e-5}


@pytest.mark.parametrize("width", [1, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_short_convolution_is_a_causal_conv1d(width: int, bias: bool) -> None:
    layer = ShortConvolution(6, width, activation="silu", bias=bias)
    if bias:
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 9, 6)
    y, tail = layer(x)
    padded = F.pad(x.transpose(1, 2), (width - 1, 0))
    expected = F.conv1d(padded, layer.weight.unsqueeze(1), layer.bias, groups=6).transpose(1, 2)
    torch.testing.assert_close(y, F.silu(expected))
    torch.testing.assert_close(tail, x[:, 9 - width + 1 :])


@pytest.mark.parametrize("split", [0, 1, 2, 5, 9])
def test_short_convolution_goes_on_from_its_tail(split: int) -> None:
    layer = ShortConvolution(6)
    x = torch.randn(2, 9, 6)
    whole, last = layer(x)
    first, tail = layer(x[:, :split])
    second, tail = layer(x[:, split:], tail)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(tail, last)


@pytest.mark.parametrize("lengths", [[4, 0, 1, 6], [0, 3], [2, 0]])
def test_short_convolution_keeps_packed_sequences_apart(lengths: list[int]) -> None:
    layer = ShortConvolution(6)
    x = torch.randn(1, sum(lengths), 6, requires_grad=True)
    tails = torch.randn(len(lengths), 3, 6)
    bounds = F.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    y, new_tails = layer(x, tails, bounds)
    pieces = [layer(piece, tails[i : i + 1]) for i, piece in enumerate(x.split(lengths, dim=1))]
    torch.testing.assert_close(y, torch.cat([piece for piece, _ in pieces], 1))
    torch.testing.assert_close(new_tails, torch.cat([tail for _, tail in pieces]))
    first_sequence = y[:, : lengths[0]].sum()
    (gradient,) = torch.autograd.grad(first_sequence, x)
    assert not gradient[:, lengths[0] :].any()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"x": torch.zeros(2, 3, 5)}, "x: wanted"),
        ({"x": torch.zeros(2, 3, 6), "tail": torch.zeros(2, 2, 6)}, "tail: wanted"),
        ({"x": torch.zeros(2, 3, 6), "cu_seqlens": torch.tensor([0, 3])}, "batch 1"),
    ],
)
def test_short_convolution_names_what_is_wrong(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ShortConvolution(6)(**arguments)


@pytest.mark.parametrize("name", LAYERS)
def test_memory_goes_on_at_every_split(name: str) -> None:
    layer = make_layer(name)
    x = torch.randn(2, LENGTH, HIDDEN)
    with torch.no_grad():
        whole, last = layer(x, return_state=True)
        for split in range(1, LENGTH):
            first, state = layer(x[:, :split], return_state=True)
            second, state = layer(x[:, split:], state, return_state=True)
            torch.testing.assert_close(torch.cat([first, second], 1), whole, **tolerance(name))
            for key, tensor in last.tensors().items():
                torch.testing.assert_close(state.tensors()[key], tensor, **tolerance(name))


@pytest.mark.parametrize("name", LAYERS)
def test_memory_decodes_in_place(name: str) -> None:
    layer = make_layer(name)
    x = torch.randn(2, LENGTH, HIDDEN)
    with torch.no_grad():
        whole, _ = layer(x)
        y, state = layer(x[:, :4], return_state=True)
        outputs, storage = [y], {key: t.data_ptr() for key, t in state.tensors().items()}
        for t in range(4, LENGTH):
            y, state = layer(x[:, t : t + 1], state, return_state=True)
            outputs.append(y)
        assert {key: t.data_ptr() for key, t in state.tensors().items()} == storage
    torch.testing.assert_close(torch.cat(outputs, 1), whole, **tolerance(name))


@pytest.mark.parametrize("name", LAYERS)
def test_memory_keeps_packed_sequences_apart(name: str) -> None:
    layer = make_layer(name)
    lengths = [7, 0, 12, 1]
    x = torch.randn(1, sum(lengths), HIDDEN)
    bounds = F.pad(torch.tensor(lengths).cumsum(0), (1, 0))
    y, state = layer(x, cu_seqlens=bounds, return_state=True)
    for i, piece in enumerate(x.split(lengths, dim=1)):
        y_alone, alone = layer(piece, return_state=True)
        torch.testing.assert_close(y[:, bounds[i] : bounds[i + 1]], y_alone, **tolerance(name))
        for key, tensor in alone.tensors().items():
            torch.testing.assert_close(state.tensors()[key][i : i + 1], tensor, **tolerance(name))


@pytest.mark.parametrize("name", LAYERS)
def test_memory_is_causal_to_the_bit(name: str) -> None:
    layer = make_layer(name)
    x = torch.randn(1, LENGTH, HIDDEN)
    with torch.no_grad():
        y, _ = layer(x)
        for t in (1, 5, 12, LENGTH - 1):
            changed = x.clone()
            changed[:, t:] = torch.randn(1, LENGTH - t, HIDDEN)
            assert torch.equal(layer(changed)[0][:, :t], y[:, :t])


@pytest.mark.parametrize("name", LAYERS)
def test_every_parameter_of_a_memory_learns(name: str) -> None:
    layer = make_layer(name)
    layer(torch.randn(2, LENGTH, HIDDEN))[0].square().sum().backward()
    for parameter_name, parameter in layer.named_parameters():
        assert torch.isfinite(parameter.grad).all(), parameter_name
        assert parameter.grad.any(), parameter_name


def test_gates_start_where_the_paper_has_them() -> None:
    layer = make_layer("atlas")
    gamma, eta, log_alpha, log_theta = layer.compute_gates(torch.zeros(1, 1, HIDDEN))
    assert gamma.shape == (1, 1, HEADS, 7)
    torch.testing.assert_close(gamma.sum(-1), torch.ones(1, 1, HEADS))
    assert log_alpha.exp().min() >= 0.99
    torch.testing.assert_close(log_theta.exp(), torch.full((1, 1, HEADS), 0.9))
    torch.testing.assert_close(eta, torch.full((1, 1, HEADS), layer.step_size))
    assert layer.step_size <= 0.02  # Newton-Schulz output has spectral norm about 1
    assert make_layer("hebbian").compute_gates(torch.zeros(1, 1, HIDDEN))[2:] == (None, None)


@pytest.mark.parametrize("name", ["mlp", "dot_mlp", "atlas_mlp", "atlas_gated"])
def test_gates_of_deep_memories_keep_their_ranges(name: str) -> None:
    layer = make_layer(name)
    x = F.rms_norm(torch.randn(4, 50, HIDDEN), (HIDDEN,))  # what a block hands in
    gamma, eta, log_alpha, log_theta = layer.compute_gates(x)
    assert gamma.shape == (4, 50, HEADS, layer.window) and eta.shape == (4, 50, HEADS)
    assert gamma.min() > 0 and gamma.max() < 1 and (gamma.sum(-1) - 1).abs().max() < 0.3
    assert log_alpha.exp().min() > 0.985 and log_alpha.max() < 0
    assert (eta / layer.step_size - 1).abs().max() < 0.6 and eta.min() > 0
    assert (log_theta is None) == (name == "dot_mlp")
    if log_theta is not None:
        assert log_theta.exp().min() > 0.75 and log_theta.exp().max() < 0.97
    with torch.no_grad():  # extremes: no gate leaves its range, and no log is infinite
        layer.gates.bias.fill_(-100.0)
        gamma, eta, *decays = layer.compute_gates(x)
        assert gamma.min() >= 0 and eta.min() >= 0
        assert all(torch.isfinite(decay).all() for decay in decays if decay is not None)


def test_gates_are_float32_in_a_bfloat16_layer() -> None:
    layer = make_layer("atlas").bfloat16()
    gates = layer.compute_gates(torch.randn(1, 2, HIDDEN, dtype=torch.bfloat16))
    assert {gate.dtype for gate in gates} == {torch.float32}


@pytest.mark.parametrize("name", ["delta", "atlas", "mlp", "atlas_gated"])
def test_memory_runs_under_autocast(name: str) -> None:
    layer = make_layer(name)
    x = torch.randn(1, LENGTH, HIDDEN)
    y, _ = layer(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y_low, _ = layer(x)
    assert y_low.dtype == torch.bfloat16
    assert F.cosine_similarity(y_low.float().flatten(), y.flatten(), dim=0) > 0.97


@pytest.mark.parametrize(
    ("memory", "shapes"),
    [
        ("linear", [(8, 45)]),
        ("mlp", [(32, 45), (8, 32)]),
        ("gated_mlp", [(32, 45), (32, 45), (8, 32)]),
    ],
)
def test_memory_weights_have_the_shapes_of_the_rule(memory: str, shapes: list) -> None:
    layer = OmegaMemory(HIDDEN, HEADS, memory=memory, degree=2)
    assert [tuple(w.shape) for w in layer.memory_weights] == [(HEADS, *s) for s in shapes]


def test_unknown_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"memory: wanted .* got 'lstm'"):
        OmegaMemory(HIDDEN, HEADS, memory="lstm")


@pytest.mark.parametrize("name", ["atlas", "omega", "atlas_mlp", "atlas_gated", "dot_mlp"])
def test_state_survives_a_dictionary(name: str) -> None:
    layer = make_layer(name)
    _, state = layer(torch.randn(2, LENGTH, HIDDEN), return_state=True)
    named = state.tensors()
    again = MemoryState.from_tensors(named).tensors()
    assert sum(key.startswith("memory.weights.") for key in named) == len(layer.memory_weights)
    assert named.keys() == again.keys()
    assert all(torch.equal(named[key], again[key]) for key in named)
    with pytest.raises(ValueError, match=r"wanted 'memory\.k_tail'"):
        MemoryState.from_tensors({key: t for key, t in named.items() if "k_tail" not in key})


def test_block_is_residual() -> None:
    block = AtlasBlock(make_layer("omega"), HIDDEN, 32)
    for linear in (block.memory.out_proj, block.mlp.down_proj):
        torch.nn.init.zeros_(linear.weight)
    x = torch.randn(2, 5, HIDDEN)
    y, state = block(x)
    assert torch.equal(x, y) and state is None


def test_feature_scales_start_as_the_truncated_exponential() -> None:
    scales = make_layer("atlas").feature_scales
    expected = [1 / math.sqrt(math.factorial(n)) for n in range(3)]
    torch.testing.assert_close(scales.detach(), torch.tensor(expected))


def test_a_step_of_zero_is_a_step_of_zero() -> None:
    layer = OmegaMemory(HIDDEN, HEADS, step_size=0.0)
    _, eta, *_ = layer.compute_gates(torch.randn(1, 3, HIDDEN))
    assert torch.count_nonzero(eta) == 0
