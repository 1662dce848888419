"""What the operator files share: their namespace, and registration in every namespace.

Namespace `atlas_ext` always is; `atlas_ext_emulated` comes with the emulated CUDA backend, with the
same schemas (docs/emulation.md). A backward calls the namespace of its forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

EMULATED = "atlas_ext_emulated"

_namespaces = ["atlas_ext"]
_registrations: list[Callable[[str], None]] = []  # of all operators, each for one namespace
_libraries: list[torch.library.Library] = []  # they register as long as they live
_use_emulated = False


def operators() -> Any:
    """The namespace whose operators the public functions call."""
    return torch.ops.atlas_ext_emulated if _use_emulated else torch.ops.atlas_ext


def use_emulated(use: bool) -> bool:
    """Whether the public functions call the emulated CUDA operators; returns what was before."""
    global _use_emulated
    before, _use_emulated = _use_emulated, use
    return before


def add_namespace(namespace: str) -> None:
    """Register all that is registered for `atlas_ext` for another namespace, too."""
    if namespace not in _namespaces:
        _namespaces.append(namespace)
        for registration in _registrations:
            registration(namespace)


def _register(registration: Callable[[str], None]) -> None:
    _registrations.append(registration)
    for namespace in _namespaces:
        registration(namespace)


def _overload(namespace: str, name: str) -> Any:
    return getattr(getattr(torch.ops, namespace), name).default


def register_backward_fake(name: str, fake: Callable[..., Any]) -> None:
    """Register the fake kernel of operator `name`, which autograd calls."""
    _register(lambda namespace: torch.library.register_fake(f"{namespace}::{name}", fake))


def register_autograd(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None] | None = None
) -> None:
    """Give operator `name` its gradient: `backward(operators of its namespace, ctx, *grads)`."""

    def register(namespace: str) -> None:
        operators = getattr(torch.ops, namespace)

        def formula(ctx: Any, *grads: Any) -> Any:
            return backward(operators, ctx, *grads)

        torch.library.register_autograd(
            f"{namespace}::{name}", formula, setup_context=setup_context
        )

    _register(register)


def register_fake(name: str) -> Callable[[Callable[..., Any]], None]:
    """Register the fake kernel of operator `name`.

    A call that mixes meta tensors with others is dispatched to it, and is refused here.
    """
    arguments = [a.name for a in _overload("atlas_ext", name)._schema.arguments]

    def register(fake: Callable[..., Any]) -> None:
        def checked(*args: Any) -> Any:
            meta = args[0].device.type == "meta"
            for argument, value in zip(arguments, args, strict=True):
                for tensor in value if isinstance(value, list | tuple) else (value,):
                    if isinstance(tensor, Tensor) and (tensor.device.type == "meta") != meta:
                        wanted = args[0].device
                        raise RuntimeError(
                            f"{name}: {argument}: wanted a tensor on {wanted} as {arguments[0]}, "
                            f"got one on {tensor.device}"
                        )
            return fake(*args)

        register_backward_fake(name, checked)

    return register


def register_autocast(name: str, casts: Sequence[str]) -> None:
    """Cast the arguments named in `casts` (and no others) to the autocast dtype.

    `torch.library.register_autocast` would cast every floating tensor, gates and states included.
    """

    def register(namespace: str) -> None:
        op = _overload(namespace, name)
        positions = [i for i, a in enumerate(op._schema.arguments) if a.name in casts]
        library = torch.library.Library(namespace, "IMPL")  # type: ignore[no-untyped-call]
        _libraries.append(library)

        for device, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
            keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

            def kernel(*args: Any, _device: str = device, _keyset: Any = keyset) -> Any:
                dtype = torch.get_autocast_dtype(_device)
                cast = list(args)
                for i in positions:
                    if cast[i].is_floating_point() and cast[i].dtype != torch.float64:
                        cast[i] = cast[i].to(dtype)
                with torch._C._ExcludeDispatchKeyGuard(_keyset):
                    return op(*cast)

            library.impl(name, kernel, key)  # type: ignore[no-untyped-call]

    _register(register)


def register_first_order(name: str) -> None:
    """Give the backward operator `name` an autograd formula that raises."""

    def no_second_derivative(operators: Any, ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(
            f"{name.removesuffix('_backward')}: wanted first derivatives only, got a second "
            "differentiation; its backward is not differentiable"
        )

    register_autograd(name, no_second_derivative)


def allow_tf32() -> bool:
    """Whether torch's float32 matmul setting permits TF32 products (CUDA only)."""
    return torch.get_float32_matmul_precision() != "highest"


# What torch.compiler.assume_constant_result does, without importing the compiler: traced code takes
# the value as a constant, and torch's guard on the global TF32 setting traces anew when it changes.
allow_tf32._dynamo_marked_constant = True  # type: ignore[attr-defined]


def grad_mask(needed: Sequence[bool]) -> int:
    """Bit i is set where gradient i is needed."""
    return sum(1 << i for i, need in enumerate(needed) if need)


def register_flops(name: str, formula: Callable[..., int]) -> None:
    """Tell `torch.utils.flop_counter` how many operations the operator `name` makes."""
    from torch.utils.flop_counter import register_flop_formula

    def register(namespace: str) -> None:
        register_flop_formula(getattr(getattr(torch.ops, namespace), name))(formula)

    _register(register)
