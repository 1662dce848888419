"""What a case of :mod:`atlas_ext.testing` is: builders of inputs, names of tensors, tolerances."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from atlas_ext import reference
from atlas_ext.state import ExpOmegaState, OmegaState

Inputs = dict[str, Any]  # keyword arguments of one call: tensors, tuples of tensors, an OmegaState

# Relative Frobenius errors against the fp64 reference on rounded inputs. Newton-Schulz amplifies
# the round-off of weak directions (docs/math/newton_schulz.md), so it has a row of its own.
PLAIN_TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 2e-5,
    torch.bfloat16: 2e-2,
    torch.float16: 4e-3,
}
ORTHOGONALISED_TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 5e-4,
    torch.bfloat16: 1e-1,
    torch.float16: 3e-2,
}
DTYPES = tuple(PLAIN_TOLERANCE)

_ACTIVATIONS = ("x", "q", "k", "v", "keys", "k_tail", "v_tail")  # leaves in the call's dtype
_CONSTANTS = ("schedule", "ns_schedule")  # tensors that are options: no gradient


def map_tensors(function: Callable[[str, Tensor], Any], tree: Any, name: str = "") -> Any:
    """Applies ``function(name, tensor)`` to every tensor of nested dicts, tuples and states.

    Names are paths: ``q``, ``weights.0``, ``initial_state.k_tail``. Everything else stays as it is.
    """

    def child(key: object) -> str:
        return f"{name}.{key}" if name else str(key)

    if isinstance(tree, Tensor):
        return function(name, tree)
    if isinstance(tree, OmegaState):
        fields = tree._asdict().items()
        return OmegaState(**{key: map_tensors(function, item, child(key)) for key, item in fields})
    if isinstance(tree, ExpOmegaState):
        items = vars(tree).items()
        return ExpOmegaState(**{key: map_tensors(function, x, child(key)) for key, x in items})
    if isinstance(tree, dict):
        return {key: map_tensors(function, item, child(key)) for key, item in tree.items()}
    if isinstance(tree, (tuple, list)):
        return tuple(map_tensors(function, item, child(key)) for key, item in enumerate(tree))
    return tree


def named_tensors(tree: Any) -> dict[str, Tensor]:
    """Every tensor of ``tree`` by its path, in order."""
    found: dict[str, Tensor] = {}
    map_tensors(found.__setitem__, tree)
    return found


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Relative Frobenius error; absolute where zero is expected; inf for NaN or a wrong shape."""
    if actual.shape != expected.shape:
        return math.inf
    difference = torch.linalg.vector_norm(actual.detach().double() - expected.detach().double())
    size = float(torch.linalg.vector_norm(expected.detach().double()))
    error = float(difference) / (size if size > 0 else 1.0)
    return error if math.isfinite(error) else math.inf


def run_in_place(
    function: Callable[..., Tensor], inputs: Inputs, **options: Any
) -> dict[str, Tensor]:
    """The output and the state after the call, a copy: that of ``inputs`` stays as it is."""
    state = map_tensors(lambda _, tensor: tensor.clone(), inputs["state"])
    output = function(**{**inputs, "state": state}, **options)
    return named_tensors({"o": output, "state": state})


@dataclass(frozen=True, eq=False)
class Case:
    """One call of one operator: how its inputs are made, its options, and why this shape."""

    op: str
    name: str
    reason: str
    build: Callable[[torch.Generator], Inputs]  # float64 tensors on the CPU
    options: Mapping[str, Any] = field(default_factory=dict)
    layout: Callable[[Inputs], Inputs] | None = None  # strides, after the conversion of dtypes
    orthogonalised: bool = False  # Newton-Schulz takes part
    gates_in_dtype: bool = False  # gates and weights in q's dtype instead of float32
    thorough: bool = False  # also runs the slow checks: opcheck, compilation

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    @property
    def in_place(self) -> bool:
        """The op updates its state in place and has no gradient."""
        return self.op.endswith("_update")

    def tolerance(self, dtype: torch.dtype) -> float:
        return (ORTHOGONALISED_TOLERANCE if self.orthogonalised else PLAIN_TOLERANCE)[dtype]

    def inputs(
        self,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> Inputs:
        """Fresh inputs: activations in ``dtype``, all else in float32 (float64 for float64)."""
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        gate = dtype if self.gates_in_dtype else wide

        def convert(name: str, tensor: Tensor) -> Tensor:
            if not tensor.is_floating_point():
                return tensor.to(device)
            leaf = name.rsplit(".", maxsplit=1)[-1]
            if leaf in _ACTIVATIONS:
                return tensor.to(device, dtype)
            is_option = "state" in name or name in _CONSTANTS
            return tensor.to(device, wide if is_option else gate)

        generator = torch.Generator().manual_seed(seed)
        inputs: Inputs = map_tensors(convert, self.build(generator))
        return inputs if self.layout is None else self.layout(inputs)

    def differentiable(self, inputs: Inputs) -> list[str]:
        """Names of the inputs that gradients flow to."""
        if self.in_place:
            return []
        return [
            name
            for name, tensor in named_tensors(inputs).items()
            if tensor.is_floating_point() and name not in _CONSTANTS
        ]

    def run_reference(self, inputs: Inputs) -> dict[str, Tensor]:
        return self.run(inputs, getattr(reference, self.op))

    def run(self, inputs: Inputs, function: Callable[..., Any] | None = None) -> dict[str, Tensor]:
        """Outputs by name of the operator, or of ``function`` with its signature.

        An in-place operator works on a copy of its state, which counts as an output.
        """
        if function is None:
            function = getattr(import_module(f"atlas_ext.ops.{self.op}"), self.op)
        if self.in_place:
            return run_in_place(function, inputs, **self.options)
        output = function(**inputs, **self.options)
        if isinstance(output, tuple):
            output = {"o": output[0], "final_state": output[1]}
        else:
            output = {"out": output}
        return named_tensors(output)


def wide_inputs(inputs: Inputs) -> Inputs:
    """The same (rounded) values in float64, detached: what the reference is evaluated on."""
    return map_tensors(  # type: ignore[no-any-return]
        lambda _, t: t.detach().double() if t.is_floating_point() else t, inputs
    )


def require_grad(inputs: Inputs, names: Iterable[str]) -> Inputs:
    """The same inputs with fresh leaves; those named require grad. Strides stay."""
    wanted = set(names)
    return map_tensors(  # type: ignore[no-any-return]
        lambda name, t: t.detach().requires_grad_(name in wanted), inputs
    )


def cotangents(outputs: Mapping[str, Tensor], seed: int = 1) -> dict[str, Tensor]:
    """A fixed random gradient for every floating-point output, in its dtype."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: normal(generator, *output.shape).to(output.device, output.dtype)
        for name, output in outputs.items()
        if output.is_floating_point()
    }


def gradients(
    outputs: Mapping[str, Tensor],
    inputs: Inputs,
    names: Iterable[str],
    grads: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Gradients with respect to the named inputs, zeros where none flows; ``grads`` by output."""
    found = named_tensors(inputs)
    leaves = {name: found[name] for name in names}
    live = [name for name in grads if outputs[name].requires_grad]
    if not live:
        return {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
    results = torch.autograd.grad(
        [outputs[name] for name in live],
        list(leaves.values()),
        [grads[name].to(outputs[name].dtype) for name in live],
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(leaves, results, strict=True))


def normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)


def conditioned(generator: torch.Generator, *shape: int) -> Tensor:
    """Matrices [..., m, n] with singular values in 0.7..1.3: Newton-Schulz is tame there."""
    if 0 in shape:
        return normal(generator, *shape)
    left, _, right = torch.linalg.svd(normal(generator, *shape), full_matrices=False)
    values = uniform(generator, 0.7, 1.3, *left.shape[:-2], left.shape[-1])
    return torch.matmul(left * values.unsqueeze(-2), right)


def omega_tensors(
    generator: torch.Generator,
    lead: Sequence[int],  # (B, T), or (M,) for one token
    *,
    H: int,
    K: int,
    V: int,
    W: int,
    alpha: bool = True,
    theta: bool = False,
    scales: int | None = None,  # degree: feature scales as well
) -> Inputs:
    """q, k, v and gates in the ranges that layers emit: unit keys, sum of gamma about 1."""
    head = (*lead, H)
    inputs: Inputs = {
        "q": torch.nn.functional.normalize(normal(generator, *head, K), dim=-1),
        "k": torch.nn.functional.normalize(normal(generator, *head, K), dim=-1),
        "v": normal(generator, *head, V),
        "gamma": uniform(generator, 0.2, 1.8, *head, W) / W,
        "eta": uniform(generator, 0.1, 0.6, *head),
    }
    if alpha:
        inputs["log_alpha"] = uniform(generator, -0.2, 0.0, *head)
    if theta:
        inputs["log_theta"] = uniform(generator, -0.7, -0.05, *head)
    if scales is not None:
        inputs["feature_scales"] = uniform(generator, 0.4, 1.1, scales + 1)
    return inputs


MEMORIES = ("linear", "mlp", "gated_mlp")


def memory_shapes(memory: str, *, V: int, D: int, F: int) -> list[tuple[int, int]]:
    """(out, in) of every matrix."""
    deep = [*[(F, D)] * MEMORIES.index(memory), (V, F)]
    return [(V, D)] if memory == "linear" else deep


def memory_weights(
    generator: torch.Generator, *lead: int, V: int, D: int, F: int = 0, memory: str = "linear"
) -> tuple[Tensor, ...]:
    """Matrices that keep the size of what they read."""
    shapes = memory_shapes(memory, V=V, D=D, F=F)
    return tuple(normal(generator, *lead, *shape) / math.sqrt(shape[-1]) for shape in shapes)


def linear_weights(generator: torch.Generator, *lead: int, V: int, D: int) -> tuple[Tensor]:
    return (memory_weights(generator, *lead, V=V, D=D)[0],)


def omega_state(
    generator: torch.Generator,
    positions: Sequence[int],
    *,
    H: int,
    K: int,
    V: int,
    W: int,
    D: int | None = None,
    F: int = 0,
    memory: str = "linear",
    momentum: bool = False,
) -> OmegaState:
    """A state in the middle of its sequences; its momentum is well conditioned."""
    N = len(positions)
    sizes: dict[str, Any] = {"V": V, "D": D or K, "F": F, "memory": memory}
    shapes = memory_shapes(memory, V=V, D=D or K, F=F)
    tail = (N, W - 1, H)
    seen = torch.tensor(positions).clamp(max=W - 1)
    empty = torch.arange(W - 1) < (W - 1 - seen).unsqueeze(-1)  # [N, W-1] slots before the start
    empty = empty[:, :, None, None]
    return OmegaState(
        weights=memory_weights(generator, N, H, **sizes),
        momentum=tuple(conditioned(generator, N, H, *shape) for shape in shapes)
        if momentum
        else None,
        chunk_weights=memory_weights(generator, N, H, **sizes),
        k_tail=torch.nn.functional.normalize(normal(generator, *tail, K), dim=-1) * ~empty,
        v_tail=normal(generator, *tail, V) * ~empty,
        position=torch.tensor(positions, dtype=torch.int64),
    )


def fused(inputs: Inputs) -> Inputs:
    """q, k, v as views of one projection, gates as [H, T]-major views, gamma and eta expanded."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    joined = torch.cat([q, k, v], dim=-1)
    views = dict(inputs)
    sizes = [q.shape[-1], k.shape[-1], v.shape[-1]]
    views["q"], views["k"], views["v"] = torch.split(joined, sizes, dim=-1)
    views["gamma"] = inputs["gamma"][..., :1].expand_as(inputs["gamma"])
    views["eta"] = inputs["eta"][:1].expand_as(inputs["eta"])
    for name in ("log_alpha", "log_theta"):
        views[name] = inputs[name].transpose(-1, -2).contiguous().transpose(-1, -2)
    views["weights"] = tuple(w.mT.contiguous().mT for w in inputs["weights"])
    return views
