"""Where and in which arithmetic a case runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

import atlas_ext
from atlas_ext import testing

DEVICES = ("cpu", "cuda", "emulated")
# Name: dtype of activations, torch's float32-matmul precision.
DTYPES = {
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "bfloat16": (torch.bfloat16, "highest"),
    "float16": (torch.float16, "highest"),
}
DEFAULT_DTYPES = {
    "cpu": ("float32",),
    "cuda": ("float32", "tf32", "bfloat16"),
    "emulated": ("float32", "bfloat16"),
}
# Relative errors in tf32, without and with Newton-Schulz; gradients of deep memories reach 2.9e-3.
TF32_TOLERANCE = (3e-3, 3e-2)


@dataclass(frozen=True)
class Setting:
    device: str  # one of DEVICES
    dtype: str  # one of DTYPES

    @property
    def torch_device(self) -> str:
        return "cuda" if self.device == "cuda" else "cpu"

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype][0]

    def tolerance(self, case: testing.Case) -> float:
        if self.dtype == "tf32":
            return TF32_TOLERANCE[case.orthogonalised]
        return case.tolerance(self.torch_dtype)

    @contextmanager
    def active(self) -> Iterator[None]:
        """The operators of this device, and the precision of float32 products."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(DTYPES[self.dtype][1])
        try:
            with testing.emulated() if self.device == "emulated" else nullcontext():
                yield
        finally:
            torch.set_float32_matmul_precision(before)

    def missing(self, op: str) -> str | None:
        """Why `op` cannot run here; None: it can."""
        if not hasattr(atlas_ext, op):
            return f"{op}: not in this version"
        if self.device == "emulated" and not testing.has_emulated_kernel(op):
            return f"{op}: no CUDA kernel in this version"
        if self.device == "cuda" and op not in build_info()["cuda_operators"].split():
            return f"{op}: no CUDA kernel in this build"
        return None


def build_info() -> dict[str, str]:
    lines = torch.ops.atlas_ext.build_info().splitlines()
    return dict(line.split("=", 1) for line in lines)


def unavailable(device: str) -> str | None:
    """Why nothing can run on `device`; None: it can."""
    if device == "emulated":
        try:
            testing.has_emulated_kernel("poly_features")
        except ImportError as error:
            return str(error)
    if device == "cuda" and not torch.cuda.is_available():
        return "no CUDA device that this torch can use: nothing was measured"
    if device == "cuda" and "cuda_runtime" not in build_info():
        return "this atlas_ext was built without CUDA: nothing was measured"
    return None
