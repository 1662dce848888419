"""The tasks on which models are trained, by name."""

from __future__ import annotations

from .base import IGNORED, Task
from .mqar import MQAR

__all__ = ["IGNORED", "TASKS", "Task"]

TASKS: dict[str, Task] = {task.name: task for task in (MQAR("mqar", vocab_size=129, length=64),)}
