"""A memory layer beside titans-pytorch's NeuralMemory, where that package is installed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from bench import eager, packages, roofline
from bench.cases.base import Case, Rival, Shape, cases_of, first, shapes
from bench.cases.rule import CHUNK, MLP
from bench.timing import Inputs

HEADS, HEAD_DIM = 4, 64
WIDTH = HEADS * HEAD_DIM


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
def _layer(device: str) -> nn.Module:
    torch.manual_seed(0)
    return PlainLayer().to(device)


@functools.cache
def _titans(device: str) -> nn.Module:
    from titans_pytorch import MemoryMLP, NeuralMemory

    torch.manual_seed(0)
    return NeuralMemory(
        WIDTH, dim_head=HEAD_DIM, heads=HEADS, chunk_size=CHUNK,
        model=MemoryMLP(HEAD_DIM, depth=2, expansion_factor=4.0),
    ).to(device)  # fmt: skip


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    """Those that take part: NeuralMemory copies its template, `memory_model`, for each head."""
    named = dict(module.named_parameters())
    return {n: p.detach() for n, p in named.items() if not n.startswith("memory_model.")}


def _call(module: nn.Module, inputs: Inputs, *extra: Any) -> Any:
    parameters = dict(zip(_parameters(module), inputs["parameters"], strict=True))
    return functional_call(module, parameters, (inputs["x"], *extra))


def _build(generator: torch.Generator, shape: Shape) -> Inputs:
    x = torch.randn(shape.batch, shape.length, WIDTH, generator=generator, dtype=torch.float64)
    return {"x": x, "parameters": tuple(p.double() for p in _parameters(_layer("cpu")).values())}


def _ours(function: Callable[..., Any], inputs: Inputs, options: dict[str, Any]) -> Tensor:
    out: Tensor = _call(_layer(str(inputs["x"].device)), inputs, function)
    return out


def _titans_inputs(inputs: Inputs) -> Inputs:
    x = inputs["x"]
    parameters = _parameters(_titans(str(x.device)))
    return {"x": x, "parameters": tuple(parameters.values())}


def _run_titans(inputs: Inputs) -> Tensor:
    return first(_call(_titans(str(inputs["x"].device)), inputs))


def _flops(shape: Shape) -> float:
    """The memory, and per token four projections and the gates."""
    around = 2.0 * shape.length * WIDTH * (4 * WIDTH + 4 * HEADS)
    memory = roofline.omega_rule_flops(shape.length, HEADS, HEAD_DIM, MLP, CHUNK, 1)
    return shape.batch * (around + memory)


def cases(device: str) -> list[Case]:
    if device == "emulated":
        return []  # omega_rule's own cases are enough there
    where = shapes((256, 2048, 8192), (512, 2048, 8192), CHUNK)
    titans = Rival(
        "titans-pytorch NeuralMemory", _run_titans, inputs=_titans_inputs, targets=(2.5, 2.5),
        absent=packages.absent("titans_pytorch", "titans-pytorch"),
    )  # fmt: skip
    return cases_of(
        f"in a layer as Titans has it, B{{batch}} H{HEADS}, mlp F256 K64 V64 W1",
        where,
        device,
        op="omega_rule",
        rivals=(titans,),
        dtypes=("float32", "tf32"),
        build=_build,
        body=_ours,
        checker=lambda inputs: _ours(eager.omega_rule_by_chunk, inputs, {}),
        forward_flops=_flops,
    )
