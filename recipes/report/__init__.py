"""The report: one page from files alone."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.report.page import ReportFiles, report

__all__ = ["ReportFiles", "report"]

_MODULES = {
    "ReportFiles": "page",
    "report": "page",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: what draws for the page needs none of its text."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
