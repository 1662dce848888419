"""A memory layer beside titans-pytorch's NeuralMemory, where that package is installed."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bench import eager, roofline
from bench.cases.base import OperatorCase, Rival, first
from bench.cases.rule import CHUNK, HEADS, MLP
from bench.timing import Inputs

HEAD_DIM = 64
WIDTH = HEADS * HEAD_DIM
PACKAGE = "titans_pytorch"


class PlainLayer(nn.Module):
    """The work that NeuralMemory does around its memory, in plain modules around `omega_rule`.

    Two norms, projections to q, k and v, gates, a gate per head on what was read, an output
    projection. Titans' step size stands inside the momentum: gamma is the step, eta is 1, W is 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read_norm, self.write_norm = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.to_q, self.to_k, self.to_v, self.combine = (
            nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4)
        )
        self.to_gates = nn.Linear(WIDTH, 3 * HEADS)
        self.to_read_gate = nn.Linear(WIDTH, HEADS, bias=False)
        shapes = [(HEADS, *shape) for shape in MLP]
        self.memory = nn.ParameterList([nn.init.normal_(torch.empty(s), std=0.1) for s in shapes])
        nn.init.constant_(self.to_gates.bias[:HEADS], -5.0)  # small steps: the rule stays stable

    def forward(self, x: Tensor, rule: Callable[..., Any]) -> Tensor:  # [B, T, WIDTH]
        written = self.write_norm(x)
        heads = (*x.shape[:2], HEADS, HEAD_DIM)
        read = self.read_norm(x)
        q, k, v = self.to_q(read), self.to_k(written), self.to_v(written)
        step, alpha, theta = self.to_gates(written).chunk(3, dim=-1)
        out = first(
            rule(
                *(y.view(heads) for y in (q, k, v)),
                torch.sigmoid(step).unsqueeze(-1),
                torch.ones_like(step),
                F.logsigmoid(alpha),
                F.logsigmoid(theta),
                weights=tuple(self.memory),
                residual=True,
                chunk_size=CHUNK,
            )
        )
        out = out * torch.sigmoid(self.to_read_gate(read)).unsqueeze(-1)
        return self.combine(out.flatten(2))


@functools.cache
def _layer() -> nn.Module:
    torch.manual_seed(0)
    return PlainLayer()


@functools.cache
def _titans() -> nn.Module:
    from titans_pytorch import MemoryMLP, NeuralMemory

    torch.manual_seed(0)
    return NeuralMemory(
        WIDTH, dim_head=HEAD_DIM, heads=HEADS, chunk_size=CHUNK,
        model=MemoryMLP(HEAD_DIM, depth=2, expansion_factor=4.0),
    )  # fmt: skip


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    """Those that take part: NeuralMemory copies its template, `memory_model`, for each head."""
    named = dict(module.named_parameters())
    return {n: p.detach() for n, p in named.items() if not n.startswith("memory_model.")}


def _inputs(module: Callable[[], nn.Module], generator: torch.Generator, tokens: int) -> Inputs:
    x = torch.randn(1, tokens, WIDTH, generator=generator, dtype=torch.float64)
    return {"x": x, "parameters": tuple(_parameters(module()).values())}


def _call(module: nn.Module, inputs: Inputs, *extra: Any) -> Any:
    parameters = dict(zip(_parameters(module), inputs["parameters"], strict=True))
    return functional_call(module, parameters, (inputs["x"], *extra))


def _run_titans(inputs: Inputs) -> Tensor:
    return first(_call(_titans(), inputs))


def _titans_inputs(tokens: int) -> Inputs:
    inputs = _inputs(_titans, torch.Generator().manual_seed(0), tokens)
    return inputs | {"x": inputs["x"].float()}


def _check(inputs: Inputs) -> Tensor:
    return _call(_layer(), inputs, eager.omega_rule_by_chunk)


def _flops(tokens: int) -> float:
    """The memory, and per token four projections and the gates."""
    around = 2.0 * tokens * WIDTH * (4 * WIDTH + 4 * HEADS)
    return around + roofline.omega_rule_flops(tokens, HEADS, HEAD_DIM, MLP, CHUNK, 1)


_FOUND = importlib.util.find_spec(PACKAGE) is not None

CASES = (
    OperatorCase(
        name="layer with mlp F256 as Titans, T2048 H4 K64 V64 C64 W1, momentum",
        op="omega_rule",
        build=functools.partial(_inputs, _layer),
        body=lambda function, inputs, _: _call(_layer(), inputs, function),
        length=2048,
        check_length=192,
        rivals=(
            Rival(
                "titans-pytorch NeuralMemory",
                _run_titans,
                inputs=_titans_inputs,
                targets=(2.5, 2.5),
                absent="" if _FOUND else "titans-pytorch is not installed",
            ),
        ),
        forward_flops=_flops,
        out_shape=lambda tokens: (1, tokens, WIDTH),
        checker=_check,
    ),
)
