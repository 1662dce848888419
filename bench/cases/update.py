"""omega_rule_update and exp_omega_rule_update: one token of decoding, in place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import atlas_ext
import atlas_ext.reference
from atlas_ext import OmegaState, testing
from bench import eager, roofline
from bench.cases.base import SIZES, Case, Rival, Shape
from bench.cases.rule import CHUNK, DEEP, LINEAR, MLP, WINDOW, deep_weights
from bench.roofline import Shapes as Matrices
from bench.setting import Setting
from bench.timing import DECODE, Call, Inputs

KEY = 64
DECODES, MEMCPY = (DECODE,), "memcpy"
# One key fills the window and M_ref stands still for a chunk: only small steps keep timed states
# finite. Checks make a few calls, with steps that count.
STEP, CHECK_STEP = 1e-4, 1e-2
CHECKED = 3  # sequences, and calls, of a check
STATES = {  # sequences: each holds a state of its own
    "cpu": (1, 64, 256), "cuda": (8, 256, 2048), "emulated": (2,),
}  # fmt: skip
CONTEXTS = {"cpu": (1024, 4096, 16384), "cuda": (4096, 16384, 65536), "emulated": (100,)}


@dataclass(frozen=True, kw_only=True)
class UpdateCase(Case):
    """`make(shape, generator, step)` gives the keyword arguments in float64, the state included."""

    make: Callable[[Shape, torch.Generator, float], Inputs]
    work: Callable[[Shape], float]
    bytes_moved: Callable[[Shape], float]
    short: Shape  # of the check
    options: dict[str, Any] = field(default_factory=dict)
    directions: tuple[str, ...] = DECODES
    memory_bound: bool = True

    def inputs(self, setting: Setting, shape: Shape, step: float = STEP) -> Inputs:
        def build(generator: torch.Generator) -> Inputs:
            return self.make(shape, generator, step)

        entry = testing.Case(self.op, self.family, "benchmark", build)
        return entry.inputs(setting.torch_dtype, setting.torch_device)

    def errors(self, setting: Setting) -> tuple[dict[str, float], float]:
        """Output and state after some calls on a short state."""
        entry = testing.Case(self.op, self.family, "benchmark", lambda generator: {})
        held = self.inputs(setting, self.short, CHECK_STEP)
        # of inputs of its own: integers are shared, and both write their state
        wide = testing.wide_inputs(self.inputs(setting, self.short, CHECK_STEP))
        found = []
        for function, inputs, active in (
            (getattr(atlas_ext, self.op), held, setting.active()),
            (getattr(atlas_ext.reference, self.op), wide, torch.no_grad()),
        ):
            with torch.no_grad(), active:
                outputs = [function(**inputs, **self.options) for _ in range(CHECKED)]
            found.append(testing.named_tensors({"output": outputs[-1], "state": inputs["state"]}))
        ours, theirs = found
        errors = {name: testing.relative_error(ours[name], theirs[name]) for name in theirs}
        return errors, setting.tolerance(entry)

    def call(self, rival: Rival | None, direction: str, setting: Setting) -> Call:
        if rival is not None and rival.name == MEMCPY:
            # half of them are read, half are written
            count = int(self.moved(direction, setting)) // 2 // 4
            source = torch.randn(count, device=setting.torch_device)
            target = torch.randn_like(source)
            return lambda: target.copy_(source)
        inputs = self.inputs(setting, self.shape)
        if rival is not None:
            if rival.call is not None:
                return rival.call(setting)
            operator = rival.operator
            assert operator is not None
            options = {n: x for n, x in self.options.items() if n != "objective"}  # l2 it has
            held = testing.map_tensors(in_float32, inputs) | options
            return in_no_grad(lambda: operator(held))
        function = getattr(atlas_ext, self.op)
        return in_no_grad(lambda: function(**inputs, **self.options))

    def moved(self, direction: str, setting: Setting) -> float:
        return self.bytes_moved(self.shape)

    def flops(self, direction: str) -> float:
        return self.work(self.shape)


def in_float32(_: str, tensor: Tensor) -> Tensor:
    """What eager PyTorch takes: it multiplies no two dtypes."""
    return tensor.float() if tensor.is_floating_point() else tensor


def in_no_grad(function: Callable[[], Tensor]) -> Call:
    def call() -> None:
        with torch.no_grad():
            function()

    return call


def tokens(generator: torch.Generator, shape: Shape, rows: int, step: float) -> Inputs:
    sizes = {"H": shape.heads, "K": KEY, "V": KEY, "W": WINDOW}
    inputs = testing.omega_tensors(generator, (rows,), **sizes, theta=True)
    inputs["eta"] = step * inputs["eta"]
    # no calls, however many, may carry the weights into the range of denormal numbers
    inputs["log_alpha"] = 1e-3 * inputs["log_alpha"]
    return dict(inputs)


def omega_inputs(matrices: Matrices) -> Callable[[Shape, torch.Generator, float], Inputs]:
    """Positions are spread over the chunk: in each call as many sequences begin one as in any."""

    def make(shape: Shape, generator: torch.Generator, step: float) -> Inputs:
        count, heads = shape.length, shape.heads
        inputs = tokens(generator, shape, count, step)
        sizes = {"H": heads, "K": KEY, "V": KEY, "W": WINDOW}
        positions = range(CHUNK, CHUNK + count)
        state = testing.omega_state(generator, positions, **sizes, momentum=True)
        weights = tuple(
            w.expand(count, *w.shape).clone() for w in deep_weights(generator, heads, matrices)
        )
        momentum = tuple(0.1 * testing.normal(generator, *w.shape) for w in weights)
        chunk = tuple(w + 0.01 * testing.normal(generator, *w.shape) for w in weights)
        inputs["state"] = OmegaState(weights, momentum, chunk, *state[3:])
        return inputs

    return make


def exp_inputs(shape: Shape, generator: torch.Generator, step: float) -> Inputs:
    """One sequence whose length is its context; calls let it grow, with room for them."""
    inputs = tokens(generator, shape, 1, step)
    sizes = {"H": shape.heads, "K": KEY, "V": KEY, "W": WINDOW}
    inputs["state"] = testing.exp_omega_state(
        generator, [shape.length], **sizes, momentum=True, room=CHUNK
    )
    return inputs


def attention_of_one(length: int, heads: int) -> Callable[[Setting], Call]:
    """torch's attention of one query over keys and values of the same context."""

    def make(setting: Setting) -> Call:
        made = {"device": setting.torch_device, "dtype": setting.torch_dtype}
        q = torch.randn(1, heads, 1, KEY, **made)
        k, v = (torch.randn(1, heads, length, KEY, **made) for _ in range(2))
        attention = torch.nn.functional.scaled_dot_product_attention
        return in_no_grad(lambda: attention(q, k, v))

    return make


def omega_cases(
    device: str, family: str, matrices: Matrices, options: dict[str, Any], target: float | None
) -> list[Case]:
    rivals = (
        Rival("eager", lambda inputs: eager.omega_rule_update(**inputs), directions=DECODES),
        Rival(MEMCPY, directions=DECODES, targets=(target, None)),
    )
    heads = 1 if device == "emulated" else 4
    return [
        UpdateCase(
            op="omega_rule_update",
            family=f"{family}, H{heads} W{WINDOW}, momentum",
            size=size,
            shape=Shape(count, 1, heads),
            unit="sequences ",
            rivals=rivals,
            make=omega_inputs(matrices),
            work=lambda s: roofline.omega_rule_update_flops(s.length, s.heads, matrices, WINDOW),
            bytes_moved=lambda s: roofline.omega_rule_update_bytes(s.length, s.heads, matrices),
            short=Shape(CHECKED, 1, heads),
            options=options | {"chunk_size": CHUNK},
        )
        for size, count in zip(SIZES, STATES[device], strict=False)
    ]


def exp_work(shape: Shape) -> float:
    """The window's error signals, the read, and the rows: decay, momentum, step."""
    return 2.0 * shape.length * shape.heads * ((WINDOW + 1) * 2 * KEY + 3 * KEY)


def exp_bytes(shape: Shape) -> float:
    """Keys and the chunk's rows read; rows and momenta read and written. Float32."""
    return 4.0 * shape.length * shape.heads * 6 * KEY


def exp_cases(device: str) -> list[Case]:
    heads = 1 if device == "emulated" else 4
    return [
        UpdateCase(
            op="exp_omega_rule_update",
            family=f"linear K64 V64, one sequence, H{heads} W{WINDOW}, momentum",
            size=size,
            shape=Shape(context, 1, heads),
            unit="context ",
            rivals=(
                Rival(
                    "eager", lambda inputs: eager.exp_omega_rule_update(**inputs),
                    directions=DECODES,
                ),
                Rival(
                    "attention of one query", call=attention_of_one(context, heads),
                    directions=DECODES,
                ),
            ),
            make=exp_inputs,
            work=exp_work,
            bytes_moved=exp_bytes,
            short=Shape(100, 1, heads),
            options={"chunk_size": CHUNK, "objective": "l2"},
        )
        for size, context in zip(SIZES, CONTEXTS[device], strict=False)
    ]  # fmt: skip


def cases(device: str) -> list[Case]:
    # The state of the linear memory stays in cache, where copying is several times as fast as from
    # memory: no target.
    return [
        *omega_cases(device, "linear K64 V64", LINEAR, {}, None),
        *omega_cases(device, "mlp F256 K64 V64", MLP, DEEP, 0.5),
        *exp_cases(device),
    ]
