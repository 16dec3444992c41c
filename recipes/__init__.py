"""The experiments of the paper, their figures, and how the built-in models were made."""

import logging

__all__: list[str] = []

# Without a writable cache matplotlib warns and then works, only more slowly.
logging.getLogger("matplotlib").setLevel(logging.ERROR)
