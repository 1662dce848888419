"""omega_rule_update: one token of many sequences, as fast as memory allows."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch

import atlas_ext
import atlas_ext.reference
from atlas_ext import OmegaState, testing
from atlas_ext.testing import map_tensors, named_tensors, relative_error, wide_inputs
from bench import roofline
from bench.cases.base import Case, Rival, missing_kernels, missing_option
from bench.cases.rule import CHUNK, DEEP, HEADS, LINEAR, MLP, WINDOW, deep_weights
from bench.roofline import Shapes
from bench.timing import DIRECTIONS, Call, Inputs

KEY, MEMCPY = 64, "memcpy"
# One key fills the window and M_ref stands still for a chunk: only small steps keep timed states
# finite. Checks make a few calls, with steps that count.
STEP, CHECK_STEP = 1e-4, 1e-2


@dataclass(frozen=True, kw_only=True)
class UpdateCase(Case):
    """`sequences` states of one memory, with momentum; positions are spread over the chunk, so that
    in each call as many sequences begin a new chunk as in any other."""

    shapes: Shapes
    sequences: int
    options: dict[str, Any]

    def inputs(self, sequences: int | None = None, step: float = STEP) -> Inputs:
        count = sequences or self.sequences
        generator = torch.Generator().manual_seed(0)
        sizes = {"H": HEADS, "K": KEY, "V": self.shapes[-1][0], "W": WINDOW}
        inputs = testing.omega_tensors(generator, (count,), **sizes, theta=True)
        inputs["eta"] = step * inputs["eta"]
        # no calls, however many, may carry the weights into the range of denormal numbers
        inputs["log_alpha"] = 1e-3 * inputs["log_alpha"]
        state = testing.omega_state(generator, range(CHUNK, CHUNK + count), **sizes, momentum=True)
        matrices = tuple(
            w.expand(count, *w.shape).clone() for w in deep_weights(generator, self.shapes)
        )
        momentum = tuple(0.1 * testing.normal(generator, *w.shape) for w in matrices)
        chunk = tuple(w + 0.01 * testing.normal(generator, *w.shape) for w in matrices)
        inputs["state"] = state._replace(weights=matrices, momentum=momentum, chunk_weights=chunk)
        narrow = map_tensors(lambda _, t: t.float() if t.is_floating_point() else t, inputs)
        assert isinstance(narrow["state"], OmegaState)
        return dict(narrow)

    @functools.cached_property
    def missing(self) -> str | None:  # type: ignore[override]
        return missing_kernels(self.op, (f"atlas_ext::{self.op}",)) or missing_option(
            lambda: atlas_ext.omega_rule_update(**self.inputs(1), **self.options)
        )

    def errors(self) -> dict[str, float]:
        """Output and state of one call at full size, and of four calls of a few sequences."""
        return self._errors(self.sequences, 1, "full size, ") | self._errors(3, 4, "")

    def _errors(self, sequences: int, calls: int, prefix: str) -> dict[str, float]:
        found = []
        for function, convert in (
            (atlas_ext.omega_rule_update, lambda inputs: inputs),
            (atlas_ext.reference.omega_rule_update, wide_inputs),
        ):
            inputs = convert(self.inputs(sequences, CHECK_STEP))
            with torch.no_grad():
                outputs = [function(**inputs, **self.options) for _ in range(calls)]
            found.append(named_tensors({"output": outputs[-1], "state": inputs["state"]}))
        return {prefix + name: relative_error(found[0][name], found[1][name]) for name in found[0]}

    def call(self, rival: Rival | None, direction: str, length: int | None = None) -> Call:
        if rival is not None:
            # half of them are read, half are written
            source = torch.randn(self.moved_bytes() // 2 // 4)
            target = torch.randn_like(source)
            return lambda: target.copy_(source)
        inputs = self.inputs(length)

        def call() -> None:
            with torch.no_grad():
                atlas_ext.omega_rule_update(**inputs, **self.options)

        return call

    def moved_bytes(self) -> int:
        return roofline.omega_rule_update_bytes(self.sequences, HEADS, self.shapes)

    def flops(self, direction: str) -> float:
        return roofline.omega_rule_update_flops(self.sequences, HEADS, self.shapes, WINDOW)


def _case(name: str, shapes: Shapes, options: dict[str, Any], target: float | None) -> UpdateCase:
    return UpdateCase(
        name=f"omega_rule_update {name}, 64 sequences H4 K64 V64 W16, momentum",
        op="omega_rule_update",
        rivals=(Rival(MEMCPY, targets=(target, None), peak=False),),
        directions=DIRECTIONS[:1],
        memory_bound=True,
        shapes=shapes,
        sequences=64,
        options=options | {"chunk_size": CHUNK},
    )


# The state of the linear case stays in cache, where copying is several times as fast: no target.
CASES = (_case("linear", LINEAR, {}, None), _case("mlp F256", MLP, DEEP, 0.5))
