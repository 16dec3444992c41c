"""Models: how they are opened and checked, their parts, their weights and checkpoints."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustness.models.model import Model
    from robustness.models.opening import open_model, open_settings
    from robustness.models.settings import ModelSettings

__all__ = ["Model", "ModelSettings", "open_model", "open_settings"]

_MODULES = {
    "Model": "model",
    "ModelSettings": "settings",
    "open_model": "opening",
    "open_settings": "opening",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is first used: nnsight takes seconds to import, settings take none."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
