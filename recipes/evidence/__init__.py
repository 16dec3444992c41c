"""What experiments are judged by: a model's files, curves, published values, stages."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recipes.evidence.files import Absent, Files
    from recipes.evidence.signatures import Signature

__all__ = ["Absent", "Files", "Signature"]

_MODULES = {
    "Absent": "files",
    "Files": "files",
    "Signature": "signatures",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: the catalogue of experiments reads curves alone."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
