"""The one error that ends a benchmark run with a sentence instead of a traceback."""

from __future__ import annotations


class BenchmarkError(Exception):
    """The run cannot go on: a program is missing, a mount failed, or what was read back is wrong."""
