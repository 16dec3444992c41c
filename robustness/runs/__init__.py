"""Runs: options, batches of text, recovery when memory runs out, and traffic to a server."""

from robustness.runs.settings import RunOptions

__all__ = ["RunOptions"]
