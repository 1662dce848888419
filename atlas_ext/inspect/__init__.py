"""Look at a memory while it reads a text: gates, inner losses, spectra (docs/inspect.md)."""

from .memory_trace import MemoryTrace, inspect_memory

__all__ = ["MemoryTrace", "inspect_memory"]
