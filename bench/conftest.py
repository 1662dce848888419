"""Options of the benchmark's tests, and the machine's ceilings in the JSON."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import atlas_ext
from bench import roofline
from bench.cases import find

LEAST_ROUNDS = 15  # a verdict needs as many


@dataclass(frozen=True)
class Settings:
    threads: int
    rounds: int
    memory: bool


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("atlas_ext benchmark")
    group.addoption("--bench-threads", type=int, default=2)
    group.addoption("--bench-rounds", type=int, default=LEAST_ROUNDS)
    group.addoption("--bench-case", default="", help="words that a case's name must contain")
    group.addoption("--bench-memory", action="store_true")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = {case.name for case in find(config.getoption("--bench-case"))}
    items[:] = [item for item in items if item.callspec.params["case"].name in wanted]


@pytest.fixture(scope="session")
def settings(pytestconfig: pytest.Config) -> Settings:
    threads = pytestconfig.getoption("--bench-threads")
    torch.set_num_threads(threads)
    rounds = pytestconfig.getoption("--bench-rounds")
    return Settings(threads, rounds, pytestconfig.getoption("--bench-memory"))


def cpu_model() -> str:
    with open("/proc/cpuinfo") as lines:
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def pytest_benchmark_update_machine_info(
    config: pytest.Config, machine_info: dict[str, Any]
) -> None:
    torch.set_num_threads(config.getoption("--bench-threads"))
    built = dict(line.split("=", 1) for line in torch.ops.atlas_ext.build_info().splitlines())
    machine_info["atlas_ext"] = {
        "cpu_model": cpu_model(),
        "threads": torch.get_num_threads(),
        "version": atlas_ext.__version__,
        "torch": torch.__version__,
        "torch_isa": torch.backends.cpu.get_cpu_capability(),
        "isa": built["cpu_isa"],
        "compiler": built["compiler"],
        "ceilings": roofline.ceilings(),
    }
