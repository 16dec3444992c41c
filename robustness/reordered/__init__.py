"""Plain models whose blocks run in another order: rebuilt, generating, exported."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustness.reordered.exporting import export
    from robustness.reordered.generation import generate
    from robustness.reordered.rebuilding import rebuild
    from robustness.reordered.settings import Sampling

__all__ = ["Sampling", "export", "generate", "rebuild"]

_MODULES = {
    "Sampling": "settings",
    "export": "exporting",
    "generate": "generation",
    "rebuild": "rebuilding",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: transformers takes seconds, and settings none."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
