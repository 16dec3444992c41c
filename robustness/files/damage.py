"""Refusals of files whose content is not what stages writes."""

from pathlib import Path
from typing import Any

import numpy as np

from robustness.errors import Refusal

REMEDY = "remove it, and the command that made it makes it anew"
"""Remedy for a file that cannot be used."""


def damaged(path: Path, fault: str) -> Refusal:
    """Return the refusal of a file that has a fault."""
    return Refusal(f"{path} is damaged or changed: {fault}; {REMEDY}")


def shown_value(value: Any) -> str:
    """Return a value for a message, cut where it is long."""
    text = repr(value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value)
    return text if len(text) <= 60 else f"{text[:57]}..."
