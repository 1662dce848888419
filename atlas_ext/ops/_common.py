"""What the operator files share: registration of autocast, first-order autograd and FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

_library = torch.library.Library("atlas_ext", "IMPL")  # type: ignore[no-untyped-call]


def register_fake(name: str) -> Callable[[Callable[..., Any]], None]:
    """Register the fake kernel of operator `name`.

    A call that mixes meta tensors with others is dispatched to it, and is refused here.
    """
    arguments = [a.name for a in getattr(torch.ops.atlas_ext, name).default._schema.arguments]

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

        torch.library.register_fake(f"atlas_ext::{name}", checked)

    return register


def register_autocast(name: str, casts: Sequence[str]) -> None:
    """Cast the arguments named in `casts` (and no others) to the autocast dtype.

    `torch.library.register_autocast` would cast every floating tensor, gates and states included.
    """
    op = getattr(torch.ops.atlas_ext, name).default
    positions = [i for i, a in enumerate(op._schema.arguments) if a.name in casts]

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

        _library.impl(name, kernel, key)  # type: ignore[no-untyped-call]


def register_first_order(name: str) -> None:
    """Give the backward operator `name` an autograd formula that raises."""

    def no_second_derivative(ctx: Any, *grads: Any) -> NoReturn:
        raise RuntimeError(
            f"{name.removesuffix('_backward')}: wanted first derivatives only, got a second "
            "differentiation; its backward is not differentiable"
        )

    torch.library.register_autograd(f"atlas_ext::{name}", no_second_derivative)


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

    register_flop_formula(getattr(torch.ops.atlas_ext, name))(formula)
