"""Verdicts on the paper's claims, and comparisons of several models."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.judging.verdicts import Number, Verdict, judge, measure

__all__ = ["Number", "Verdict", "judge", "measure"]

_MODULES = {
    "Number": "verdicts",
    "Verdict": "verdicts",
    "judge": "verdicts",
    "measure": "verdicts",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: drawing needs no verdicts."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
