"""Settings of every test run: determinism, NaN-filled uninitialised memory, fixed seeds, backend.

`pytest --backend emulated` runs the operator tests on the emulated CUDA kernels, as far as these
exist, in several orders of threads (docs/emulation.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from atlas_ext._load import load_emulated
from atlas_ext.testing import emulated, has_emulated_kernel

ORDERS = (
    {"order": "forward", "cp_async": "late"},
    {"order": "reverse", "cp_async": "early"},
    {"order": "random", "seed": 1, "cp_async": "random"},
)
# CUDA has no float64 kernels, and these tests compute in nothing else.
FLOAT64_TESTS = {
    "test_gradcheck",
    "test_gradients_flow_through_non_leaves",
    "test_gradients_of_one_output_at_a_time",
    "test_second_differentiation_raises",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--backend", choices=("native", "emulated"), default="native")


def pytest_configure() -> None:
    # What torch allocates (also for C++ code) is NaN until written: a read of it cannot go unseen.
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True


def is_emulated(config: pytest.Config) -> bool:
    return config.getoption("--backend") == "emulated"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if is_emulated(metafunc.config) and metafunc.module.__name__.endswith("test_ops"):
        names = ["-".join(map(str, order.values())) for order in ORDERS]
        metafunc.parametrize("emulation", ORDERS, ids=names, indirect=True)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    skipped = collection_path.suffix == ".py" and collection_path.name != "test_ops.py"
    return True if is_emulated(config) and skipped else None


def runs_emulated(item: pytest.Item) -> bool:
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    case = parameters.get("case")
    return (
        case is not None
        and item.originalname not in FLOAT64_TESTS
        and parameters.get("dtype") is not torch.float64
        and has_emulated_kernel(case.op)
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if is_emulated(config):
        config.hook.pytest_deselected(items=[item for item in items if not runs_emulated(item)])
        items[:] = [item for item in items if runs_emulated(item)]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if is_emulated(config):
        with emulated() as module:
            terminalreporter.write_line(f"emulated CUDA: {module.counters()}")


@pytest.fixture(autouse=True)
def emulation(request: pytest.FixtureRequest) -> Iterator[None]:
    """With --backend emulated, the test runs on the emulated kernels in one order of threads."""
    options = getattr(request, "param", None)
    with nullcontext() if options is None else emulated(**options):
        yield


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def emulator() -> None:
    """Skips the test where this build has no emulated kernels."""
    try:
        load_emulated()
    except ImportError as error:
        pytest.skip(str(error))


@pytest.fixture
def backend(emulator: None) -> Iterator[Any]:
    """The emulated kernels in use, as `emulated` yields them."""
    with emulated() as module:
        yield module


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    """Lets a test change torch's setting for float32 products."""
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test change the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
