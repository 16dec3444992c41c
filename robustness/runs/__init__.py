"""Runs: their options, batches of text, memory, and traffic to a server."""

from robustness.runs.settings import RunOptions

__all__ = ["RunOptions"]
